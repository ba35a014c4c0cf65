"""Evaluation tasks during a run: the current policy answers them, and the answers are scored."""

import dataclasses
from collections.abc import Sequence

import jax

from care_jax.config import Config, steps_of
from care_jax.config.blocks import TaskConfig
from care_jax.errors import UserError
from care_jax.evaluation import tasks
from care_jax.evaluation.answers import generate, logprobs
from care_jax.evaluation.answers.prompts import GenerationSettings, item_prompts
from care_jax.evaluation.answers.responses import Answer
from care_jax.evaluation.items import Options, TaskItems
from care_jax.evaluation.model import LoadedModel
from care_jax.models import lora
from care_jax.textfiles import JsonObject
from care_jax.training.step import State


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task of the configuration with its items."""

    config: TaskConfig
    task: tasks.Task
    options: Options
    items: TaskItems


def read_tasks(config: Config) -> list[PreparedTask]:
    """Reads the configured tasks. Raises UserError for one that does not exist, cannot be read, or needs a judge."""
    return [] if config.evaluation is None else [_prepare(task) for task in config.evaluation.tasks]


def _prepare(config: TaskConfig) -> PreparedTask:
    task, options = tasks.find(config.task, Options.select(dict(config)))
    if task.kind == "judged":
        raise UserError(f"evaluation.tasks: {task.name} is rated by a judge: evaluate the export, then judge it")
    return PreparedTask(config, task, options, tasks.read(task, config.data, options))


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """Answers and scores the tasks. Answers in words are greedy unless the configuration sets a temperature.

    prepared: what `read_tasks` returned. policy_model: without weights; its folder says which ids end an answer.
    total: steps of the run.
    """

    config: Config
    prepared: Sequence[PreparedTask]
    policy_model: LoadedModel
    mesh: jax.sharding.Mesh
    total: int

    def due(self, step: int) -> bool:
        """Returns whether the tasks are scored after this step."""
        every = self.total if self.config.evaluation is None else steps_of(self.config.evaluation.every, self.total)
        return step == self.total or step % every == 0

    def run(self, state: State) -> JsonObject:
        """Returns `eval/LABEL/score`, `eval/LABEL/missing` and `eval/LABEL/failed` of every task."""
        model = self.policy_model.model
        params = state.params if state.lora is None else lora.merge(model, state.params, state.lora)
        policy = dataclasses.replace(self.policy_model, params=params)
        metrics: JsonObject = {}
        for prepared in self.prepared:
            answers = self._answers(prepared, policy)
            result, _ = tasks.score(prepared.task, prepared.items, answers, prepared.options)
            label = prepared.config.label
            metrics |= {f"eval/{label}/{name}": result[name] for name in ("score", "missing", "failed")}
        return metrics

    def _answers(self, prepared: PreparedTask, policy: LoadedModel) -> list[Answer]:
        items, task, config = prepared.items.items, prepared.task, prepared.config
        if tasks.uses_logprobs(task, prepared.options, has_weights=True):
            template = config.chat_template or "none"
            encoded = [logprobs.encode_item(policy.tokenizer, item, template) for item in items]
            scores = logprobs.score_items(policy.model, policy.params, encoded, self.mesh)
            return [
                Answer({}, item.id, None, None, tuple(logps), None) for item, logps in zip(items, scores, strict=True)
            ]
        settings = GenerationSettings(
            temperature=config.temperature or 0.0,
            max_tokens=config.max_tokens or task.max_tokens,
            seed=self.config.seed,
            chat_template=config.chat_template or self.config.data.chat_template,
            date=self.config.data.template_date,
        )
        lines = generate.generate_answers(policy, item_prompts(items, task.name), settings, self.mesh)
        return [
            Answer(line, item.id, None, line["response"], None, None) for item, line in zip(items, lines, strict=True)
        ]
