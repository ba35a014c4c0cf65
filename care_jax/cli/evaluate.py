"""The commands `care-jax evaluate`, `judge` and `report`: answers and their scores, ratings, tables over systems."""

import argparse
import dataclasses
import json
import pathlib
import sys
import typing

from care_jax.cli.answerers import Answerer, ModelAnswerer, make_answerer
from care_jax.cli.command import Subparsers, add_endpoint_options, command, require_at_least
from care_jax.errors import UserError
from care_jax.evaluation import tasks
from care_jax.evaluation.answers.prompts import GenerationSettings, item_prompts
from care_jax.evaluation.answers.responses import read_answers
from care_jax.evaluation.items import Method, Mode, Options, Outcome, QueryLanguage, TaskItems
from care_jax.evaluation.tasks import Task
from care_jax.textfiles import JsonObject, write_json, write_lines, writing

_EVALUATE = """\
Answers come from a model on this machine (--model), an OpenAI-compatible endpoint (--base-url), or a file (--responses:
JSON lines with id or question, and response, or logps of the options). The key of an endpoint is read from
OPENAI_API_KEY. Scores of care_eval and llm_globe need a judge: care-jax judge.
"""
_JUDGE = """\
The judge is an endpoint (--judge-model J --base-url U), a checkpoint on this machine (--judge-model FOLDER), or anyone
who answers a file of requests in OpenAI's batch format (--requests-out F, then --answers-in F). The same command again
asks only for ratings that are missing. If the answers have human_rating, the judge's agreement with it is printed.
"""


def add(commands: Subparsers) -> None:
    """Adds the commands."""
    _add_evaluate(commands)
    _add_judge(commands)
    _add_report(commands)


def _add_evaluate(commands: Subparsers) -> None:
    evaluate = command(commands, "evaluate", _evaluate, "answers to the tasks' questions, and their scores", _EVALUATE)
    evaluate.add_argument("--task", "--tasks", metavar="T[,T]", help="tasks; --list prints them")
    evaluate.add_argument("--list", action="store_true", help="print the tasks and exit")
    evaluate.add_argument(
        "--model", metavar="M", help="a folder, hub id, run directory, `sample`, or a name at --base-url"
    )
    evaluate.add_argument("--base-url", metavar="U", help="an OpenAI-compatible endpoint, such as vLLM's")
    evaluate.add_argument("--responses", metavar="F", help="a file of existing answers")
    evaluate.add_argument("--data", metavar="D", help="the task's file or folder (default: its hub dataset)")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N items")
    evaluate.add_argument("--out", "--output_path", metavar="DIR", help="output folder (default: evaluation/SYSTEM)")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object per task")
    evaluate.add_argument(
        "--mode", choices=typing.get_args(Mode), default="parity",
        help="parity: what the published script computes; strict: what it was meant to compute (default: parity)",
    )  # fmt: skip
    evaluate.add_argument(
        "--method", choices=typing.get_args(Method), default="auto",
        help="choose options by log-probability of their letters, or in words (default: what the task's authors do)",
    )  # fmt: skip
    evaluate.add_argument("--language", metavar="L", help="only items of this language or country")
    evaluate.add_argument(
        "--query-language", choices=typing.get_args(QueryLanguage), default="native", help="language of the questions"
    )
    evaluate.add_argument(
        "--translations", metavar="F", help="English questions: question, culture, translated_question"
    )
    evaluate.add_argument("--prompt", metavar="ID", help="which of the task's prompts (blend_sa: inst-4, pers-3, ...)")
    evaluate.add_argument(
        "--num-fewshot", "--num_fewshot", type=int, default=0, metavar="N",
        help="solved questions before each question, of its language and domain or subject (default: 0)",
    )  # fmt: skip
    evaluate.add_argument("--fewshot", metavar="D", help="file of the solved questions: a validation or dev split")
    evaluate.add_argument("--columns", metavar="MAP", help="field=column,... for a table with other column names")
    add_endpoint_options(evaluate)
    evaluate.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the task's)")
    evaluate.add_argument("--top-p", type=float, default=1.0, metavar="P")
    evaluate.add_argument("--max-tokens", type=int, metavar="N", help="tokens per answer (default: the task's)")
    evaluate.add_argument("--n", type=int, default=1, metavar="N", help="answers per question (default: 1)")
    evaluate.add_argument("--seed", type=int, default=0, metavar="N")
    evaluate.add_argument("--batch-size", "--batch_size", type=int, default=16, metavar="N")
    evaluate.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    evaluate.add_argument(
        "--chat-template", metavar="T",
        help="model, none, or a jinja file (default: model for words, none for log-probabilities)",
    )  # fmt: skip
    evaluate.add_argument("--template-date", metavar="DATE", help="YYYY-MM-DD, for a template that asks for today's")


def _add_judge(commands: Subparsers) -> None:
    judge = command(commands, "judge", _judge, "ratings of answers by a judge", _JUDGE)
    judge.add_argument("--responses", metavar="F", required=True, help="answers with question, reference, category")
    judge.add_argument("--out", metavar="F", help="the answers' lines with rating, judgement, judge")
    judge.add_argument("--judge-model", metavar="J", help="a model's name at --base-url, or a checkpoint here")
    judge.add_argument("--base-url", metavar="U", help="an OpenAI-compatible endpoint")
    judge.add_argument("--requests-out", metavar="F", help="write the requests as a batch file, judge nothing")
    judge.add_argument("--answers-in", metavar="F", nargs="+", help="a batch's output, later files win")
    judge.add_argument("--dry-run", action="store_true", help="count the calls, make none")
    judge.add_argument("--rubrics", metavar="DIR", help="the published prompt files, instead of our own wording")
    judge.add_argument(
        "--criteria", choices=("by_content", "as_published"), default="by_content",
        help="which text a category gets: two published file names are swapped (default: by_content)",
    )  # fmt: skip
    judge.add_argument("--rubric", metavar="NAME", help="one rubric for all rows, such as care_pro or globe")
    judge.add_argument("--second", metavar="F", help="another judge's output: print the agreement with it")
    judge.add_argument("--tries", type=int, default=3, metavar="N", help="judgements without a rating (default: 3)")
    judge.add_argument("--temperature", type=float, default=0.0, metavar="T")
    judge.add_argument("--max-tokens", type=int, default=1024, metavar="N")
    judge.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    judge.add_argument("--cache", metavar="F", help="answers by content (default: OUT.cache.jsonl)")
    judge.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    judge.add_argument("--json", action="store_true", help="print the account as one JSON object")
    add_endpoint_options(judge)


def _add_report(commands: Subparsers) -> None:
    tables = command(commands, "report", _report, "tables, plots and a page to browse, over any number of systems")
    tables.add_argument("folders", metavar="DIR", nargs="+", help="folders or files of judged or scored answers")
    tables.add_argument("--base", metavar="NAME", help="the system that others are compared with")
    tables.add_argument("--out", metavar="DIR", default="report", help="default: report")
    tables.add_argument("--json", action="store_true", help="print every cell as one JSON object")


# --- evaluate --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _TaskRun:
    """A task to be evaluated. folder: where its files are written, or None."""

    task: Task
    options: Options
    items: TaskItems
    folder: pathlib.Path | None


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.list:
        _print_tasks()
        return 0
    _check(arguments)
    options = Options.select(vars(arguments) | {"columns": _parse_columns(arguments.columns)})
    named = [tasks.find(name, options) for name in arguments.task.split(",") if name.strip()]
    # Mistakes in the data of any task are reported before a model is loaded.
    task_items = [tasks.read(task, arguments.data, task_options) for task, task_options in named]
    answerer = None if arguments.responses is not None else make_answerer(arguments)
    for (task, task_options), items in zip(named, task_items):
        run = _TaskRun(task, task_options, items, _folder(arguments, answerer, task))
        if answerer is None or run.folder is None:
            path, settings = arguments.responses, {"answers": arguments.responses}
        else:
            path, settings = str(run.folder / "responses.jsonl"), _settings(arguments, answerer, run)
            status = _answer(arguments, answerer, run, pathlib.Path(path))
            if status:
                return status
        result, outcome = tasks.score(task, items, read_answers(path), task_options)
        result |= settings
        if answerer is None or answerer.is_writer():
            _print_notes(arguments, run, result)
            _write(run, result, outcome)
        print(json.dumps(result, ensure_ascii=False) if arguments.json else _describe(result), flush=True)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that are missing, too small, or do not go together."""
    if not arguments.task:
        raise UserError("--task: which one? care-jax evaluate --list prints them")
    if arguments.responses is not None and (arguments.model or arguments.base_url):
        raise UserError("--responses: this file has the answers; leave --model and --base-url out")
    if not (arguments.responses or arguments.model or arguments.base_url):
        raise UserError("expected one of --model, --base-url, --responses: where do the answers come from?")
    require_at_least(
        ("--limit", arguments.limit, 1),
        ("--n", arguments.n, 1),
        ("--max-tokens", arguments.max_tokens, 1),
        ("--temperature", arguments.temperature, 0),
        ("--batch-size", arguments.batch_size, 1),
        ("--num-fewshot", arguments.num_fewshot, 0),
    )
    if arguments.fewshot is not None and not arguments.num_fewshot:
        raise UserError("--fewshot: how many examples of it? --num-fewshot N")


def _parse_columns(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(name.strip() and sign and column.strip() for name, sign, column in pairs):
        raise UserError(f"--columns: expected field=column,field=column, found {text!r}")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _folder(arguments: argparse.Namespace, answerer: Answerer | None, task: Task) -> pathlib.Path | None:
    """Returns where a task's files are written; None for a file of answers without --out."""
    if arguments.out is not None:
        return pathlib.Path(arguments.out) / task.name
    return None if answerer is None else pathlib.Path("evaluation") / answerer.name.replace("/", "__") / task.name


def _settings(arguments: argparse.Namespace, answerer: Answerer, run: _TaskRun) -> JsonObject:
    """Returns what the result says about how the answers were obtained."""
    if tasks.uses_logprobs(run.task, run.options, answerer.has_weights):
        return {"answers": arguments.model, "method": "logprob", "chat_template": arguments.chat_template or "none"}
    generation = _generation(arguments, run.task)
    return {
        "answers": arguments.base_url or arguments.model,
        "method": "generate",
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "max_tokens": generation.max_tokens,
        "n_samples": generation.n,
        "seed": generation.seed,
        "chat_template": generation.chat_template,
    }


def _generation(arguments: argparse.Namespace, task: Task) -> GenerationSettings:
    return GenerationSettings(
        temperature=task.temperature if arguments.temperature is None else arguments.temperature,
        top_p=arguments.top_p, n=arguments.n, seed=arguments.seed, date=arguments.template_date,
        max_tokens=arguments.max_tokens or task.max_tokens,
        chat_template=arguments.chat_template or "model", batch_size=arguments.batch_size,
    )  # fmt: skip


def _answer(arguments: argparse.Namespace, answerer: Answerer, run: _TaskRun, path: pathlib.Path) -> int:
    """Writes the answers to the task's questions to `path`; returns the exit status."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items, task = run.items.items, run.task
    if isinstance(answerer, ModelAnswerer) and tasks.uses_logprobs(task, run.options, has_weights=True):
        answerer.score_choices(items, task.name, path, arguments.chat_template or "none")
        return 0
    status, summary = answerer.answer(item_prompts(items, task.name), path, _generation(arguments, task))
    if not status and answerer.is_writer():
        print(f"{path}: {summary}", file=sys.stderr, flush=True)
    return status


def _print_notes(arguments: argparse.Namespace, run: _TaskRun, result: JsonObject) -> None:
    notes = list(run.items.notes)
    if arguments.responses is not None and result["unmatched"]:
        notes.append(f"{arguments.responses}: {result['unmatched']} answers belong to no item of {run.task.name}")
    if run.task.kind == "judged" and result["score"] is None:
        responses = "" if run.folder is None else f" --responses {run.folder / 'responses.jsonl'}"
        notes.append(f"{run.task.name} is scored by a judge: care-jax judge{responses} --out RATED --judge-model J")
    for note in notes:
        print(note, file=sys.stderr, flush=True)


def _write(run: _TaskRun, result: JsonObject, outcome: Outcome) -> None:
    if run.folder is None:
        return
    with writing("--out", run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / "result.json", result)
        if run.task.kind != "judged":
            write_lines(run.folder / "scores.jsonl", tasks.score_lines(outcome, run.task.name, result["system"]))


def _print_tasks() -> None:
    for task in tasks.TASKS.values():
        source = f"; {task.source}, {task.licence}" if task.source else ""
        print(f"{task.name:20} {task.summary} ({task.metric}{source})")


def _describe(result: JsonObject) -> str:
    """Returns a task's result as lines of text."""
    score = "no score yet" if result["score"] is None else f"{result['score']:.4f}"
    low, high = result["interval"] or (None, None)
    interval = "" if low is None else f" [{low:.4f}, {high:.4f}]"
    counts = ", ".join(f"{result[name]} {name}" for name in ("excluded", "missing", "failed"))
    lines = [f"{result['task']}: {result['metric']} {score}{interval}; n {result['n']}, {counts}"]
    for dimension, values in result["by"].items():
        groups = ", ".join(f"{name} {value:.4f} ({result['by_n'][dimension][name]})" for name, value in values.items())
        lines.append(f"  by {dimension}: {groups}")
    lines += [f"  {name}: {value:.4f}" for name, value in result["scores"].items() if value is not None]
    return "\n".join(lines)


# --- judge -----------------------------------------------------------------------------------------------------------


def _judge(arguments: argparse.Namespace) -> int:
    from care_jax.cli import judging
    from care_jax.stopping import interruptible

    require_at_least(("--tries", arguments.tries, 1), ("--max-tokens", arguments.max_tokens, 1))
    require_at_least(("--temperature", arguments.temperature, 0), ("--limit", arguments.limit, 1))
    with interruptible() as status:
        return judging.judge(arguments)
    return status.value


# --- report ----------------------------------------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> int:
    from care_jax.evaluation.report import files, records, tables

    out = pathlib.Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, expected a folder")
    loaded = records.load_records(arguments.folders)
    report = tables.make_report(loaded, arguments.base)
    written = files.write_report(report, loaded, out)
    if arguments.json:
        print(json.dumps(files.as_json(report), ensure_ascii=False))
    else:
        print(files.markdown(report), end="")
    print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    return 0
