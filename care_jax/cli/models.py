"""The commands `care-jax score`, `generate` and `export`, which use a trained model."""

import argparse
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from care_jax.cli.command import (
    Subparsers,
    add_endpoint_options,
    add_model_options,
    add_sampling_options,
    check_sampling,
    command,
    open_answerer,
)
from care_jax.errors import UserError
from care_jax.textfiles import write_lines, writing

if TYPE_CHECKING:
    from care_jax.evaluation.answers.answerers import Answerer
    from care_jax.evaluation.answers.prompts import PromptRow
else:
    Answerer = PromptRow = object  # imported when the command runs

_MODEL = "a folder, a hub id, a run directory, or `sample`"


def add(commands: Subparsers) -> None:
    """Adds the commands."""
    score = command(commands, "score", _score, "write the log-probability of every response of a dataset")
    option = score.add_argument
    option("--model", metavar="M", required=True, help=_MODEL)
    option("--data", metavar="D", required=True, help="a file, a folder, a hub id, or `sample`")
    option("--out", metavar="F", required=True, help="JSON lines of row, field, logp, tokens")
    option("--reader", default="care", metavar="R", help="how to read D (default: care)")
    add_model_options(score)

    generate = command(commands, "generate", _generate, "answer questions; if it is run again, it continues")
    option = generate.add_argument
    option("--model", metavar="M", help=f"{_MODEL}; or a model's name at --base-url")
    option("--base-url", metavar="U", help="an OpenAI-compatible endpoint, such as vLLM's")
    option("--data", metavar="D", required=True, help="rows with question, or prompt (messages or plain text)")
    option("--out", metavar="F", required=True, help="JSON lines: the row, response, finish_reason, system")
    option(
        "--task", choices=("translate",), help="translate: translate the questions into English, for `translations:`"
    )
    option("--limit", type=int, metavar="N", help="only the first N rows")
    add_sampling_options(generate, temperature="0.7; for translate: 0", max_tokens=256)
    add_model_options(generate)
    add_endpoint_options(generate)

    summary = "write the newest checkpoint of a run as a Hugging Face folder"
    option = command(commands, "export", _export, summary).add_argument
    option("run_directory", metavar="RUN", help="a run directory")
    option("folder", metavar="FOLDER", help="the folder to write")
    option("--adapter", action="store_true", help="only the adapters, as a PEFT folder")


def _check_not_data(out: str, data: str) -> None:
    if pathlib.Path(out).expanduser().resolve() == pathlib.Path(data).expanduser().resolve():
        raise UserError(f"--out: {out} is the data: choose another file")


def _score(arguments: argparse.Namespace) -> int:
    from care_jax.data import readers

    _check_not_data(arguments.out, arguments.data)
    reading = readers.read(arguments.reader, arguments.data, every_response=True)

    from care_jax import sharding
    from care_jax.distributed import is_writer, say
    from care_jax.evaluation.model import open_model
    from care_jax.training.forward.score import score, summarize

    mesh = sharding.make_mesh()
    opened = open_model(arguments.model, mesh, arguments.dtype)
    lines, corpus = score(
        opened.model, opened.params, opened.tokenizer, reading.questions,
        chat_template=arguments.chat_template, date=arguments.template_date, mesh=mesh,
    )  # fmt: skip
    say(summarize(arguments.data, corpus, reading.report.rows, reading.report.dropped))
    if not lines:
        raise UserError(f"{arguments.data}: holds no response to score")
    if is_writer():
        with writing("--out", arguments.out):
            write_lines(pathlib.Path(arguments.out), lines)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from care_jax.evaluation.answers.prompts import read_prompts

    if arguments.temperature is None:
        arguments.temperature = 0.7 if arguments.task is None else 0.0
    check_sampling(arguments)
    if arguments.model is None and arguments.base_url is None:
        raise UserError("expected --model M or --base-url U, which give the answers")
    _check_not_data(arguments.out, arguments.data)
    if arguments.task == "translate":
        return _translate(arguments)
    prompts, dropped = read_prompts(arguments.data, arguments.limit)
    return _answer(arguments, open_answerer(arguments), prompts, dropped)


def _translate(arguments: argparse.Namespace) -> int:
    """Writes the translations. The answers are in a file next to them, from which the same command can continue."""
    from care_jax.evaluation.answers import translate

    prompts, dropped = translate.read_untranslated(arguments.data, arguments.limit)
    out, arguments.out = arguments.out, f"{arguments.out}.answers.jsonl"
    _check_not_data(arguments.out, arguments.data)
    answerer = open_answerer(arguments)
    status = _answer(arguments, answerer, prompts, dropped)
    if status or not answerer.is_writer():
        return status
    count, lost = translate.write_translations(arguments.out, out)
    print(f"{out}: {count} translations; {lost} left out (blank, failed or cut off by --max-tokens)", file=sys.stderr)
    return 0


def _answer(
    arguments: argparse.Namespace, answerer: Answerer, prompts: list[PromptRow], dropped: Mapping[str, int]
) -> int:
    """Writes the answers to `--out`, prints a summary and returns the exit status."""
    from care_jax.evaluation.answers.prompts import GenerationSettings

    settings = GenerationSettings(
        temperature=arguments.temperature, top_p=arguments.top_p, max_tokens=arguments.max_tokens, n=arguments.n,
        seed=arguments.seed, chat_template=arguments.chat_template, date=arguments.template_date,
    )  # fmt: skip
    status, summary = answerer.answer(prompts, pathlib.Path(arguments.out), settings)
    if not status and answerer.is_writer():
        reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items() if count)
        print(f"{arguments.out}: {summary}; dropped: {reasons or 'nothing'}", file=sys.stderr, flush=True)
    return status


def _export(arguments: argparse.Namespace) -> int:
    from care_jax.distributed import say
    from care_jax.training.export.huggingface import export_run

    step = export_run(arguments.run_directory, arguments.folder, adapter=arguments.adapter)
    say(f"step {step} of {arguments.run_directory} exported to {arguments.folder}")
    return 0
