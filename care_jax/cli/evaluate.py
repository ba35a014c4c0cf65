"""The command `care-jax evaluate`: reads the tasks, obtains the answers, scores them, writes and prints the results."""

import argparse
import dataclasses
import json
import pathlib
import sys
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING

from care_jax.cli.command import (
    Subparsers,
    add_endpoint_options,
    add_model_options,
    add_sampling_options,
    check_minimum,
    check_sampling,
    command,
    open_answerer,
)
from care_jax.errors import UserError
from care_jax.evaluation.items import Method, Mode, Options, QueryLanguage, TaskItems
from care_jax.textfiles import JsonObject, write_json, write_lines, writing

if TYPE_CHECKING:
    from care_jax.evaluation.answers.answerers import Answerer
    from care_jax.evaluation.tasks import Task
else:
    Answerer = Task = object  # their modules load numpy, so they are imported when the command runs

_MORE = """\
The answers come from a model on this machine (--model), an OpenAI-compatible endpoint (--base-url) or a file
(--responses: lines with id or question, and with response or the logps of the choices). The environment variable
OPENAI_API_KEY holds the key of an endpoint. care_eval and llm_globe are scored by a judge afterwards: care-jax judge.
"""


@dataclasses.dataclass(frozen=True)
class _TaskRun:
    """A task to evaluate. folder: where its files are written, or None."""

    task: Task
    options: Options
    items: TaskItems
    folder: pathlib.Path | None


def add(commands: Subparsers) -> None:
    """Adds the command."""
    evaluate = command(commands, "evaluate", _evaluate, "answer the questions of tasks and score the answers", _MORE)
    option = evaluate.add_argument
    option("--task", "--tasks", metavar="T[,T]", help="names of tasks; --list prints them")
    option("--list", action="store_true", help="print the tasks and exit")
    option("--model", metavar="M", help="a folder, hub id, run directory or `sample`; or a model's name at --base-url")
    option("--base-url", metavar="U", help="an OpenAI-compatible endpoint, such as vLLM's")
    option("--responses", metavar="F", help="score the answers in this file")
    option("--data", metavar="D", help="the task's file or folder (default: its hub dataset)")
    option("--limit", type=int, metavar="N", help="only the first N questions")
    option("--out", "--output_path", metavar="DIR", help="output folder (default: evaluation/SYSTEM)")
    option("--json", action="store_true", help="print one JSON object per task")
    option(
        "--mode", choices=typing.get_args(Mode), default="parity",
        help="parity: what the published script computes; strict: what it was meant to compute (default: parity)",
    )  # fmt: skip
    option(
        "--method", choices=typing.get_args(Method), default="auto",
        help="how to choose: logprob (compare log-probabilities), generate (answer in words), or auto (what the task's "
        "authors do, if the model can; the default)",
    )  # fmt: skip
    option("--language", metavar="L", help="only questions of this language or country")
    option(
        "--query-language", choices=typing.get_args(QueryLanguage), default="native",
        help="ask in the questions' own language or in English (default: native)",
    )  # fmt: skip
    option(
        "--translations",
        metavar="F",
        help="questions in English: question, culture, translated_question",
    )
    option("--prompt", metavar="ID", help="which prompt of the task to use, such as inst-4 or pers-3 of blend_sa")
    option(
        "--num-fewshot", "--num_fewshot", type=int, default=0, metavar="N",
        help="number of solved examples before each question, of its language and domain or subject (default: 0)",
    )  # fmt: skip
    option("--fewshot", metavar="D", help="file of the examples, such as a validation split")
    option("--columns", metavar="MAP", help="field=column,... if the data has other column names")
    add_endpoint_options(evaluate)
    add_sampling_options(evaluate, temperature="the task's", max_tokens=None)
    option("--batch-size", "--batch_size", type=int, default=16, metavar="N", help="answers at once (default: 16)")
    add_model_options(evaluate, chat_template=None)


def _evaluate(arguments: argparse.Namespace) -> int:
    from care_jax.evaluation import tasks
    from care_jax.evaluation.answers.responses import read_answers

    if arguments.list:
        for task in tasks.TASKS.values():
            source = f"; {task.source}, {task.licence}" if task.source else ""
            print(f"{task.name:20} {task.summary} ({task.metric}{source})")
        return 0
    _check(arguments)
    options = Options.select(vars(arguments) | {"columns": _parse_columns(arguments.columns)})
    named = [tasks.find(name, options) for name in arguments.task.split(",") if name.strip()]
    # Mistakes in the data of any task are reported before a model is loaded.
    task_items = [tasks.read(task, arguments.data, task_options) for task, task_options in named]
    answerer = None if arguments.responses is not None else open_answerer(arguments)
    for (task, task_options), items in zip(named, task_items):
        run = _TaskRun(task, task_options, items, _folder(arguments, answerer, task))
        if answerer is None or run.folder is None:
            path, settings = arguments.responses, {"answers": arguments.responses}
        else:
            path = str(run.folder / "responses.jsonl")
            status, settings = _answer(arguments, answerer, run, pathlib.Path(path))
            if status:
                return status
        result, outcome = tasks.score(task, items, read_answers(path), task_options)
        result |= settings
        if answerer is None or answerer.is_writer():
            _print_notes(arguments, run, result)
            _write(run, result, tasks.score_lines(outcome, task.name, result["system"]))
        print(json.dumps(result, ensure_ascii=False) if arguments.json else _describe(result), flush=True)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that are missing, too small, or do not go together."""
    if not arguments.task:
        raise UserError("--task: expected the name of a task; care-jax evaluate --list prints them")
    if arguments.responses is not None and (arguments.model or arguments.base_url):
        raise UserError("--responses: this file has the answers; leave --model and --base-url out")
    if not (arguments.responses or arguments.model or arguments.base_url):
        raise UserError("expected one of --model, --base-url, --responses, which give the answers")
    check_sampling(arguments)
    check_minimum(("--batch-size", arguments.batch_size, 1), ("--num-fewshot", arguments.num_fewshot, 0))
    if arguments.fewshot is not None and not arguments.num_fewshot:
        raise UserError("--fewshot: expected --num-fewshot N too, the number of examples before each question")


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


def _answer(
    arguments: argparse.Namespace, answerer: Answerer, run: _TaskRun, path: pathlib.Path
) -> tuple[int, JsonObject]:
    """Writes the answers to the task's questions to `path`; returns the exit status, and how they were obtained."""
    from care_jax.evaluation import tasks
    from care_jax.evaluation.answers.answerers import ModelAnswerer
    from care_jax.evaluation.answers.prompts import GenerationSettings, item_prompts

    items, task = run.items.items, run.task
    by_logprobs = tasks.uses_logprobs(task, run.options, answerer.has_weights)
    with writing("--out", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    if by_logprobs and isinstance(answerer, ModelAnswerer):
        template = arguments.chat_template or "none"
        answerer.score_choices(items, task.name, path, template)
        return 0, {"answers": arguments.model, "method": "logprob", "chat_template": template}
    settings = GenerationSettings(
        temperature=task.temperature if arguments.temperature is None else arguments.temperature,
        top_p=arguments.top_p, n=arguments.n, seed=arguments.seed, date=arguments.template_date,
        max_tokens=arguments.max_tokens or task.max_tokens,
        chat_template=arguments.chat_template or "model", batch_size=arguments.batch_size,
    )  # fmt: skip
    status, summary = answerer.answer(item_prompts(items, task.name), path, settings)
    if not status and answerer.is_writer():
        print(f"{path}: {summary}", file=sys.stderr, flush=True)
    names = ("temperature", "top_p", "max_tokens", "n_samples", "seed", "chat_template")
    values = vars(settings) | {"n_samples": settings.n}
    answers = arguments.base_url or arguments.model
    return status, {"answers": answers, "method": "generate", **{name: values[name] for name in names}}


def _print_notes(arguments: argparse.Namespace, run: _TaskRun, result: JsonObject) -> None:
    notes = list(run.items.notes)
    if arguments.responses is not None and result["unmatched"]:
        notes.append(f"{arguments.responses}: {result['unmatched']} answers belong to no item of {run.task.name}")
    if run.task.kind == "judged" and result["score"] is None:
        responses = "" if run.folder is None else f" --responses {run.folder / 'responses.jsonl'}"
        notes.append(f"{run.task.name} is scored by a judge: care-jax judge{responses} --out RATED --judge-model J")
    for note in notes:
        print(note, file=sys.stderr, flush=True)


def _write(run: _TaskRun, result: JsonObject, score_lines: Iterator[JsonObject]) -> None:
    if run.folder is None:
        return
    with writing("--out", run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / "result.json", result)
        if run.task.kind != "judged":
            write_lines(run.folder / "scores.jsonl", score_lines)


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
