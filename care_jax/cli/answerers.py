"""Where the answers of `care-jax evaluate` come from, and where they and their scores go."""

import argparse
import json
import pathlib
import sys
from typing import Any

from care_jax.errors import INTERRUPTED, UserError
from care_jax.evaluation.answers.responses import read_answers
from care_jax.evaluation.answers.settings import GenerationSettings
from care_jax.evaluation.items import Options, TaskItems
from care_jax.evaluation.tasks import registry
from care_jax.evaluation.tasks.registry import Task
from care_jax.textfiles import write_lines, write_whole


class Answerer:
    """Answers and scores one task after the other; the model is opened once."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        self._opened: Any = None
        self._mesh: Any = None
        self._endpoint: Any = None
        if arguments.base_url is not None:
            from care_jax.cli.command import open_endpoint

            self._endpoint = open_endpoint(arguments, arguments.model)

    def run(self, task: Task, taken: TaskItems, options: Options) -> tuple[dict[str, Any], int]:
        """(result, 0), or ({}, exit status) where a signal stopped it."""
        arguments = self._arguments
        if arguments.responses is not None:
            answers = read_answers(arguments.responses)
            folder = None if arguments.out is None else pathlib.Path(arguments.out) / task.name
            result, outcome = registry.score(task, taken, answers, options)
            if result["unmatched"]:
                self._say(f"{arguments.responses}: {result['unmatched']} answers belong to no item of {task.name}")
        else:
            folder = self._folder(task)
            path = folder / "responses.jsonl"
            status = self._answer(task, taken, options, path)
            if status:
                return {}, status
            result, outcome = registry.score(task, taken, read_answers(str(path)), options)
        result |= self._settings(task, options)
        for note in taken.notes:
            self._say(note)
        if task.kind == "judged" and result["score"] is None:
            where = "" if folder is None else f" --responses {folder / 'responses.jsonl'}"
            self._say(f"{task.name} is scored by a judge: care-jax judge{where} --out RATED --judge-model J")
        if folder is not None and self._writes():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / "result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
                if task.kind != "judged":
                    write_lines(folder / "scores.jsonl", registry.score_lines(outcome, task.name, result["system"]))
            except OSError as error:
                raise UserError(f"--out: cannot write in {folder}: {error.strerror}") from None
        return result, 0

    def _folder(self, task: Task) -> pathlib.Path:
        if self._arguments.out is not None:
            return pathlib.Path(self._arguments.out) / task.name
        if self._endpoint is not None:
            name = self._endpoint.model
        else:
            from care_jax.evaluation.model import system_name

            name = system_name(self._arguments.model)
        return pathlib.Path("evaluation") / name.replace("/", "__") / task.name

    def _settings(self, task: Task, options: Options) -> dict[str, Any]:
        """What the answers were asked for with; a file's are whoever's made it."""
        arguments = self._arguments
        if arguments.responses is not None:
            return {"answers": arguments.responses}
        if registry.by_logprob(task, options, self._endpoint is None):
            return {"answers": arguments.model, "method": "logprob", "chat_template": arguments.chat_template or "none"}
        return {
            "answers": arguments.base_url or arguments.model,
            "method": "generate",
            "temperature": self._temperature(task),
            "top_p": arguments.top_p,
            "max_tokens": arguments.max_tokens or task.max_tokens,
            "n_samples": arguments.n,
            "seed": arguments.seed,
            "chat_template": arguments.chat_template or "model",
        }

    def _temperature(self, task: Task) -> float:
        return task.temperature if self._arguments.temperature is None else self._arguments.temperature

    def _answer(self, task: Task, taken: TaskItems, options: Options, path: pathlib.Path) -> int:
        from care_jax.evaluation.answers.prompts import item_prompts

        path.parent.mkdir(parents=True, exist_ok=True)
        asked = item_prompts(taken.items, task.name)
        if self._endpoint is not None:
            return self._by_endpoint(task, asked, path)
        self._open()
        if registry.by_logprob(task, options, has_weights=True):
            from care_jax.cli.command import progress_bar
            from care_jax.evaluation.answers.logprobs import score_file

            template = self._arguments.chat_template or "none"
            with progress_bar(len(asked), "items") as update:
                score_file(self._opened, taken.items, task.name, path, template, self._mesh)
                update(len(asked))
            return 0
        return self._by_words(task, asked, path)

    def _by_endpoint(self, task: Task, asked: list[Any], path: pathlib.Path) -> int:
        from care_jax.cli.command import progress_bar
        from care_jax.evaluation.answers.ask import ask_file
        from care_jax.stopping import interruptible

        arguments = self._arguments
        with interruptible() as status, progress_bar(len(asked) * arguments.n, "answers") as update:
            counts = ask_file(self._endpoint, asked, path, self._generation(task), update)
            self._say(f"{path}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        return status.value

    def _by_words(self, task: Task, asked: list[Any], path: pathlib.Path) -> int:
        from care_jax.evaluation.answers import generate
        from care_jax.stopping import Interrupted, StopSignal

        settings = self._generation(task)
        try:
            with StopSignal() as stop:
                generate.generate_file(
                    self._opened, asked, path, settings, self._mesh, check=lambda: stop.check("between two answers")
                )
        except Interrupted as stopped:
            print(f"care-jax: {stopped}", file=sys.stderr)
            return INTERRUPTED
        return 0

    def _generation(self, task: Task) -> GenerationSettings:
        arguments = self._arguments
        return GenerationSettings(
            temperature=self._temperature(task), top_p=arguments.top_p, n=arguments.n, seed=arguments.seed,
            max_tokens=arguments.max_tokens or task.max_tokens, date=arguments.template_date,
            chat_template=arguments.chat_template or "model", batch_size=arguments.batch_size,
        )  # fmt: skip

    def _open(self) -> None:
        if self._opened is None:
            from care_jax import sharding
            from care_jax.evaluation.model import open_model

            self._mesh = sharding.make_mesh()
            self._opened = open_model(self._arguments.model, self._mesh, self._arguments.dtype)

    def _writes(self) -> bool:
        if self._opened is None:
            return True
        from care_jax.distributed import is_writer

        return is_writer()

    def _say(self, text: str) -> None:
        if self._writes():
            print(text, file=sys.stderr, flush=True)
