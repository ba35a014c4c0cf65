"""What `care-jax judge` does: count, write requests, read answers, or ask."""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

from care_jax.errors import UserError
from care_jax.evaluation import judge as judges
from care_jax.evaluation import rubrics as rubrics_
from care_jax.evaluation.endpoint import Client, ReplyCache
from care_jax.textfiles import write_lines


def judge(arguments: argparse.Namespace) -> int:
    """Runs the command; an interrupt ends it with every answer that had come kept."""
    local = _local(arguments)
    ways = [arguments.requests_out is not None, arguments.answers_in is not None]
    if not any(ways) and arguments.judge_model is None and arguments.base_url is None and not arguments.dry_run:
        raise UserError(
            "expected a judge: --judge-model J with --base-url U, --judge-model FOLDER, --requests-out F, or "
            "--answers-in F"
        )
    if any(ways) and arguments.base_url is not None:
        raise UserError("--base-url: files are written or read; no endpoint is asked")
    if arguments.out is None and not arguments.dry_run and (arguments.answers_in or not any(ways)):
        raise UserError("--out: where should the rated answers go?")
    _apart(arguments)
    name = arguments.judge_model or judges.DEFAULT_JUDGE
    client_of: Any = None
    if not any(ways) and local is None and not arguments.dry_run:
        client_of, name = _endpoint(arguments)
    rubrics = rubrics_.load_rubrics(arguments.rubrics, arguments.criteria)
    work = judges.jobs(
        arguments.responses, rubrics, name, temperature=arguments.temperature, max_tokens=arguments.max_tokens,
        rubric=arguments.rubric, limit=arguments.limit,
    )  # fmt: skip
    if arguments.dry_run:
        return _count(arguments, work)
    if arguments.answers_in is not None:
        judgements, strangers = judges.by_file(work, arguments.answers_in)
        if strangers:
            print(f"care-jax: {strangers} answers belong to no row of {arguments.responses}", file=sys.stderr)
        left = [job for job, one in zip(work, judgements) if one.rating is None and job.body is not None]
        if arguments.requests_out is not None and left:
            write_lines(pathlib.Path(arguments.requests_out), judges.request_lines(left))
            print(f"{arguments.requests_out}: {len(left)} requests to be asked again", file=sys.stderr)
        return _write(arguments, work, judgements, name, rubrics, {})
    if arguments.requests_out is not None:
        lines = judges.request_lines(work)
        write_lines(pathlib.Path(arguments.requests_out), lines)
        print(f"{arguments.requests_out}: {len(lines)} requests for {name}", file=sys.stderr)
        return 0
    return _ask(arguments, work, name, rubrics, client_of, local)


def _local(arguments: argparse.Namespace) -> str | None:
    """The judge as a checkpoint on this machine, where it is one."""
    given = arguments.judge_model
    if given is None or arguments.base_url is not None:
        return None
    place = pathlib.Path(given).expanduser()
    return given if given == "sample" or place.exists() else None


def _apart(arguments: argparse.Namespace) -> None:
    source = pathlib.Path(arguments.responses).expanduser().resolve()
    for option, path in (("--out", arguments.out), ("--requests-out", arguments.requests_out)):
        if path is not None and pathlib.Path(path).expanduser().resolve() == source:
            raise UserError(f"{option}: {path} is the responses: choose another file")


def _endpoint(arguments: argparse.Namespace) -> tuple[Any, str]:
    from care_jax.cli.command import endpoint

    if arguments.base_url is None:
        raise UserError(
            f"--judge-model: no folder {arguments.judge_model!r} here; for a model at an endpoint give --base-url, "
            "such as https://api.openai.com/v1"
        )
    found = endpoint(arguments, arguments.judge_model)
    return found, found.model


def _cache(arguments: argparse.Namespace) -> ReplyCache:
    if arguments.cache is not None:
        return ReplyCache(arguments.cache)
    return ReplyCache(None if arguments.out is None else f"{arguments.out}.cache.jsonl")


def _count(arguments: argparse.Namespace, work: list[judges.Job]) -> int:
    place = arguments.cache or (None if arguments.out is None else f"{arguments.out}.cache.jsonl")
    cache = ReplyCache(place if place is not None and pathlib.Path(place).exists() else None)
    asked = [job for job in work if job.body is not None]
    by_rubric: dict[str, int] = {}
    for job in asked:
        by_rubric[job.rubric.name] = by_rubric.get(job.rubric.name, 0) + 1
    calls = judges.pending(work, cache, arguments.tries)
    cache.close()
    found = {
        "rows": len(work), "empty": len(work) - len(asked), "calls": calls, "by_rubric": by_rubric,
        "prompt_characters": sum(len(job.body["messages"][0]["content"]) for job in asked if job.body is not None),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"{found['rows']} rows, {found['empty']} without an answer: {calls} calls")
        for rubric, count in by_rubric.items():
            print(f"  {rubric}: {count}")
        print(f"  characters of all prompts: {found['prompt_characters']}")
    return 0


def _ask(
    arguments: argparse.Namespace, work: list[judges.Job], name: str, rubrics: Any, endpoint: Any, local: str | None
) -> int:
    from care_jax.cli.command import progress

    cache = _cache(arguments)
    try:
        with progress(len(work), "judgements") as update:
            if local is not None:
                from care_jax import sharding
                from care_jax.evaluation.model import open_model

                mesh = sharding.make_mesh()
                opened = open_model(local, mesh, arguments.dtype)
                judgements = judges.by_model(work, opened, cache, arguments.tries, mesh, update)
                counts: dict[str, int] = {}
            else:
                client = Client(endpoint, cache)
                judgements = judges.by_endpoint(work, client, arguments.tries, update)
                counts = dict(client.counts)
    finally:
        cache.close()
    return _write(arguments, work, judgements, name, rubrics, counts)


def _write(
    arguments: argparse.Namespace, work: list[judges.Job], judgements: list[judges.Judgement], name: str,
    rubrics: Any, counts: dict[str, int],
) -> int:  # fmt: skip
    lines = judges.rated_lines(work, judgements, name, rubrics)
    try:
        write_lines(pathlib.Path(arguments.out), lines)
    except OSError as error:
        raise UserError(f"--out: cannot write {arguments.out}: {error.strerror}") from None
    found = judges.account(work, judgements) | {"counts": counts}
    human = judges.against_humans(lines)
    if human is not None:
        found["agreement_with_people"] = dataclasses.asdict(human)
    if arguments.second is not None:
        found["agreement_with_second"] = dataclasses.asdict(judges.against_judge(lines, arguments.second))
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    mean = "no mean" if found["mean"] is None else f"mean {found['mean']:.3f}"
    print(
        f"{arguments.out}: {found['judged']} of {found['rows']} judged, {mean}; {found['failed']} failed, "
        f"{found['empty']} without an answer"
    )
    if found["failed"]:
        print(f"  mean with failures at the scale's low end: {found['mean_failures_as_lowest']:.3f}")
    for problem, count in found["problems"].items():
        print(f"  {count}: {problem}")
    for title, key in (("people", "agreement_with_people"), ("the second judge", "agreement_with_second")):
        if key in found:
            print(f"  agreement with {title}: " + _agreement(found[key]))
    return 0


def _agreement(found: dict[str, Any]) -> str:
    names = {"pearson": "Pearson", "spearman": "Spearman", "kappa": "kappa", "weighted_kappa": "kappa (quadratic)"}
    shown = [f"{title} {found[key]:.3f}" for key, title in names.items() if found[key] is not None]
    return f"{', '.join(shown) or 'not defined'}; mean difference {found['mean_difference']:+.3f}; n {found['n']}"
