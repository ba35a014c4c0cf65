"""The command `care-jax judge`: counts the calls, writes requests, reads their answers, or asks a judge."""

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
from collections import Counter
from typing import TYPE_CHECKING

from care_jax.cli.command import Subparsers, add_endpoint_options, check_minimum, command, open_endpoint
from care_jax.errors import UserError
from care_jax.evaluation.endpoint.cache import ReplyCache
from care_jax.evaluation.endpoint.client import Client, Endpoint
from care_jax.stopping import interruptible
from care_jax.textfiles import JsonObject, progress_bar, write_lines, writing

if TYPE_CHECKING:
    from care_jax.evaluation.judge import Job, Judgement
else:
    Job = Judgement = object  # their module loads numpy, so it is imported when the command runs

_MORE = """\
The judge is a model at an endpoint (--judge-model J --base-url U) or on this machine (--judge-model FOLDER). Or write a
file of requests in OpenAI's batch format (--requests-out F), have it answered, and read the answers (--answers-in F).
If the command is run again, it asks only for ratings that are missing. If the answers have a field human_rating, the
judge's agreement with it is printed.
"""


def add(commands: Subparsers) -> None:
    """Adds the command."""
    judge = command(commands, "judge", _judge, "rate answers by a judge", _MORE)
    option = judge.add_argument
    option("--responses", metavar="F", required=True, help="file of the answers, with question, reference, category")
    option("--out", metavar="F", help="output: the answers with rating, judgement, judge")
    option("--judge-model", metavar="J", help="a model's name at --base-url; or a folder, or `sample`")
    option("--base-url", metavar="U", help="an OpenAI-compatible endpoint")
    option("--requests-out", metavar="F", help="write the requests as a batch file and stop")
    option("--answers-in", metavar="F", nargs="+", help="answers to the requests; later files override earlier ones")
    option("--dry-run", action="store_true", help="count the calls and exit")
    option("--rubrics", metavar="DIR", help="folder of the published prompt files (default: care_jax's wording)")
    option(
        "--criteria", choices=("by_content", "as_published"), default="by_content",
        help="which rubric a category gets: by_content corrects the swapped names of two published files, as_published "
        "keeps them (default: by_content)",
    )  # fmt: skip
    option("--rubric", metavar="NAME", help="rate all answers by this rubric, such as care_pro or globe")
    option("--second", metavar="F", help="output of another judge; print the agreement with it")
    option("--tries", type=int, default=3, metavar="N", help="attempts per answer until there is a rating (default: 3)")
    option("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    option("--max-tokens", type=int, default=1024, metavar="N", help="tokens per reply (default: 1024)")
    option("--limit", type=int, metavar="N", help="only the first N answers")
    option("--cache", metavar="F", help="file that keeps the judge's replies (default: OUT.cache.jsonl)")
    option("--dtype", choices=("float32", "bfloat16"), default="float32", help="of a model here (default: float32)")
    option("--json", action="store_true", help="print the summary as one JSON object")
    add_endpoint_options(judge)


def _judge(arguments: argparse.Namespace) -> int:
    check_minimum(("--tries", arguments.tries, 1), ("--max-tokens", arguments.max_tokens, 1))
    check_minimum(("--temperature", arguments.temperature, 0), ("--limit", arguments.limit, 1))
    _check(arguments)
    with interruptible() as status:
        _rate(arguments)
    return status.value


def _rate(arguments: argparse.Namespace) -> None:
    """Does what the options ask for. If it is interrupted, every reply that has arrived is in the cache."""
    from care_jax.evaluation import judge as judges
    from care_jax.evaluation.rubrics import load_rubrics

    endpoint = None
    if not (_uses_files(arguments) or arguments.dry_run or _is_local(arguments)):
        endpoint = open_endpoint(arguments, arguments.judge_model)
    name = endpoint.model if endpoint is not None else arguments.judge_model or judges.DEFAULT_JUDGE
    settings = judges.JudgeSettings(
        name, arguments.temperature, arguments.max_tokens, rubric=arguments.rubric, limit=arguments.limit
    )
    jobs = judges.read_jobs(arguments.responses, load_rubrics(arguments.rubrics, arguments.criteria), settings)
    if arguments.dry_run:
        _print_counts(arguments, jobs)
        return
    if arguments.requests_out is not None and arguments.answers_in is None:
        _write_requests(arguments, judges.request_lines(jobs), f"for {name}")
        return
    counts: dict[str, int] = {}
    if arguments.answers_in is not None:
        judgements = _read_answers(arguments, jobs)
    else:
        judgements, counts = _ask(arguments, jobs, endpoint)
    lines = judges.rated_lines(jobs, judgements, name, arguments.criteria)
    with writing("--out", arguments.out):
        write_lines(pathlib.Path(arguments.out), lines)
    summary = judges.summarize_judgements(jobs, judgements) | {"counts": counts}
    if (people := judges.agreement_with_people(lines)) is not None:
        summary["agreement_with_people"] = dataclasses.asdict(people)
    if arguments.second is not None:
        summary["agreement_with_second"] = dataclasses.asdict(judges.agreement_with_judge(lines, arguments.second))
    _print_summary(arguments, summary)


def _uses_files(arguments: argparse.Namespace) -> bool:
    return arguments.requests_out is not None or arguments.answers_in is not None


def _is_local(arguments: argparse.Namespace) -> bool:
    """Returns whether the judge is a model on this machine."""
    model = arguments.judge_model
    exists = model is not None and (model == "sample" or pathlib.Path(model).expanduser().exists())
    return exists and arguments.base_url is None


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    by_files = _uses_files(arguments)
    needs_model = not (by_files or arguments.dry_run) and arguments.base_url is None
    if needs_model and arguments.judge_model is None:
        judges = "--judge-model J with --base-url U, --judge-model FOLDER, --requests-out F, or --answers-in F"
        raise UserError(f"expected a judge: {judges}")
    if by_files and arguments.base_url is not None:
        raise UserError("--base-url: leave it out with --requests-out or --answers-in, which call no endpoint")
    if arguments.out is None and not arguments.dry_run and (arguments.answers_in or not by_files):
        raise UserError("--out: expected a file for the rated answers")
    source = pathlib.Path(arguments.responses).expanduser().resolve()
    for option, path in (("--out", arguments.out), ("--requests-out", arguments.requests_out)):
        if path is not None and pathlib.Path(path).expanduser().resolve() == source:
            raise UserError(f"{option}: {path} is the responses: choose another file")
    if needs_model and not _is_local(arguments):
        endpoint = "for a model at an endpoint give --base-url, such as https://api.openai.com/v1"
        raise UserError(f"--judge-model: no folder {arguments.judge_model!r} here; {endpoint}")


def _write_requests(arguments: argparse.Namespace, lines: list[JsonObject], purpose: str) -> None:
    with writing("--requests-out", arguments.requests_out):
        write_lines(pathlib.Path(arguments.requests_out), lines)
    print(f"{arguments.requests_out}: {len(lines)} requests {purpose}", file=sys.stderr)


def _read_answers(arguments: argparse.Namespace, jobs: list[Job]) -> list[Judgement]:
    """Returns the judgements in --answers-in; writes requests for answers without a rating to --requests-out."""
    from care_jax.evaluation import judge as judges

    judgements, unmatched = judges.judge_by_files(jobs, arguments.answers_in)
    if unmatched:
        print(f"care-jax: {unmatched} answers belong to no row of {arguments.responses}", file=sys.stderr)
    unrated = [job for job, judgement in zip(jobs, judgements) if judgement.rating is None and job.body is not None]
    if arguments.requests_out is not None and unrated:
        _write_requests(arguments, judges.request_lines(unrated), "to send again")
    return judgements


def _cache_path(arguments: argparse.Namespace) -> str | None:
    return arguments.cache or (None if arguments.out is None else f"{arguments.out}.cache.jsonl")


def _ask(
    arguments: argparse.Namespace, jobs: list[Job], endpoint: Endpoint | None
) -> tuple[list[Judgement], dict[str, int]]:
    """Returns the judgements of the endpoint or else of the model on this machine, and the endpoint's counts."""
    from care_jax.evaluation import judge as judges

    with (
        contextlib.closing(ReplyCache(_cache_path(arguments))) as cache,
        progress_bar(len(jobs), "judgements", "judgement") as bar,
    ):
        if endpoint is not None:
            client = Client(endpoint, cache)
            return judges.judge_by_endpoint(jobs, client, arguments.tries, bar.update), dict(client.counts)

        from care_jax import sharding
        from care_jax.evaluation.answers.generate import generate_answers
        from care_jax.evaluation.model import open_model

        mesh = sharding.make_mesh()
        opened = open_model(arguments.judge_model, mesh, arguments.dtype)
        generate = functools.partial(generate_answers, opened, mesh=mesh)
        return judges.judge_by_model(jobs, generate, cache, arguments.tries, bar.update), {}


def _print_counts(arguments: argparse.Namespace, jobs: list[Job]) -> None:
    """Prints what `--dry-run` prints: how many calls are left to make."""
    from care_jax.evaluation.judge import count_pending

    path = _cache_path(arguments)
    with contextlib.closing(ReplyCache(path if path is not None and pathlib.Path(path).exists() else None)) as cache:
        calls = count_pending(jobs, cache, arguments.tries)
    by_rubric = Counter(job.rubric.name for job in jobs if job.body is not None)
    characters = sum(len(job.body["messages"][0]["content"]) for job in jobs if job.body is not None)
    empty = len(jobs) - by_rubric.total()
    if arguments.json:
        counts = {"rows": len(jobs), "empty": empty, "calls": calls, "by_rubric": by_rubric}
        print(json.dumps(counts | {"prompt_characters": characters}))
        return
    print(f"{len(jobs)} rows, {empty} without an answer: {calls} calls")
    for rubric, count in by_rubric.items():
        print(f"  {rubric}: {count}")
    print(f"  characters of all prompts: {characters}")


def _print_summary(arguments: argparse.Namespace, summary: JsonObject) -> None:
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    mean = "no mean" if summary["mean"] is None else f"mean {summary['mean']:.3f}"
    print(
        f"{arguments.out}: {summary['judged']} of {summary['rows']} judged, {mean}; {summary['failed']} failed, "
        f"{summary['empty']} without an answer"
    )
    if summary["failed"]:
        print(f"  mean if failures had the lowest rating: {summary['mean_failures_as_lowest']:.3f}")
    for problem, count in summary["problems"].items():
        print(f"  {count}: {problem}")
    for title, key in (("people", "agreement_with_people"), ("the second judge", "agreement_with_second")):
        if key in summary:
            print(f"  agreement with {title}: {_agreement_text(summary[key])}")


def _agreement_text(agreement: JsonObject) -> str:
    names = {"pearson": "Pearson", "spearman": "Spearman", "kappa": "kappa", "weighted_kappa": "kappa (quadratic)"}
    measures = [f"{title} {agreement[key]:.3f}" for key, title in names.items() if agreement[key] is not None]
    difference = f"mean difference {agreement['mean_difference']:+.3f}; n {agreement['n']}"
    return f"{', '.join(measures) or 'not defined'}; {difference}"
