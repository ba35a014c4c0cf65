"""Evaluation tasks in the middle of a run: the policy as it stands answers them, and they are scored."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from care_jax.config import Config, steps_of
from care_jax.config.blocks import TaskConfig
from care_jax.errors import UserError
from care_jax.evaluation.answers import generate, logprobs
from care_jax.evaluation.answers.prompts import item_prompts
from care_jax.evaluation.answers.responses import Answer
from care_jax.evaluation.answers.settings import GenerationSettings
from care_jax.evaluation.items import Options, TaskItems
from care_jax.evaluation.model import LoadedModel
from care_jax.evaluation.tasks import registry
from care_jax.models import lora
from care_jax.training.step import State


@dataclasses.dataclass(frozen=True)
class _Prepared:
    label: str
    config: TaskConfig
    task: registry.Task
    options: Options
    taken: TaskItems


def read_tasks(config: Config) -> list[_Prepared]:
    """The items of the configured tasks, read before anything is trained.

    Raises UserError for a task that is none, cannot be read, or needs a judge.
    """
    return [] if config.evaluation is None else [_prepare(one) for one in config.evaluation.tasks]


def _prepare(one: TaskConfig) -> _Prepared:
    options = Options(
        mode=one.mode, method=one.method, query_language=one.query_language, language=one.language,
        prompt=one.prompt, translations=one.translations, columns=one.columns, limit=one.limit,
        num_fewshot=one.num_fewshot or 0, fewshot=one.fewshot,
    )  # fmt: skip
    task, options = registry.find(one.task, options)
    if task.kind == "judged":
        raise UserError(f"evaluation.tasks: {task.name} is rated by a judge: evaluate the export, then judge it")
    return _Prepared(one.label, one, task, options, registry.read(task, one.data, options))


def task_scores(
    config: Config,
    prepared: Sequence[_Prepared],
    model: Any,
    tokenizer: Any,
    source: pathlib.Path,
    mesh: jax.sharding.Mesh,
    total: int,
) -> "TaskScores | None":
    """The tasks that `read_tasks` read, or None. source: the model's folder, whose files say what ends an answer."""
    if config.evaluation is None:
        return None
    every = steps_of(config.evaluation.every, total)
    return TaskScores(prepared, model, tokenizer, source, mesh, every, total, config)


class TaskScores:
    """Answers and scores the tasks; answers in words are greedy unless the configuration gives a temperature."""

    def __init__(
        self, prepared: Sequence[_Prepared], model: Any, tokenizer: Any, source: pathlib.Path,
        mesh: jax.sharding.Mesh, every: int, total: int, config: Config,
    ):  # fmt: skip
        self._prepared, self._model, self._tokenizer = prepared, model, tokenizer
        self._source, self._mesh, self._every, self._total, self._config = source, mesh, every, total, config

    def due(self, step: int) -> bool:
        return step == self._total or step % self._every == 0

    def run(self, state: State) -> dict[str, Any]:
        """`eval/LABEL/score`, and `eval/LABEL/missing` and `failed`, of every task."""
        params = state.params if state.lora is None else lora.merge(self._model, state.params, state.lora)
        opened = LoadedModel(self._config.name, self._source, self._model, params, self._tokenizer)
        found: dict[str, Any] = {}
        for one in self._prepared:
            result, _ = registry.score(one.task, one.taken, self._answers(one, opened), one.options)
            found |= {f"eval/{one.label}/{name}": result[name] for name in ("score", "missing", "failed")}
        return found

    def _answers(self, one: _Prepared, opened: LoadedModel) -> list[Answer]:
        items = one.taken.items
        if registry.by_logprob(one.task, one.options, has_weights=True):
            encoded = [logprobs.encode_item(opened.tokenizer, i, one.config.chat_template or "none") for i in items]
            values = logprobs.score_items(opened.model, opened.params, encoded, self._mesh)
            return [Answer({}, i.id, None, None, tuple(v), None) for i, v in zip(items, values, strict=True)]
        settings = GenerationSettings(
            temperature=one.config.temperature or 0.0,
            max_tokens=one.config.max_tokens or one.task.max_tokens,
            seed=self._config.seed,
            chat_template=one.config.chat_template or self._config.data.chat_template,
            date=self._config.data.template_date,
        )
        lines = generate.generate_answers(opened, item_prompts(items, one.task.name), settings, self._mesh)
        return [Answer(line, i.id, None, line["response"], None, None) for i, line in zip(items, lines, strict=True)]
