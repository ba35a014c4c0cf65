"""Prompts for a model on this machine or an endpoint, and how answers are generated. Imports no jax."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from care_jax.data.preferences import stable_hash
from care_jax.data.questions import Content, is_messages, user_turn
from care_jax.data.rows import fields as f
from care_jax.data.rows.report import Report
from care_jax.data.rows.row import Row
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.evaluation.items import Item
from care_jax.textfiles import JsonObject

_FIELDS = {"question": ("question", "query"), "prompt": ("prompt", "instruction")}


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """One prompt. row: its number in the input, which seeds its answers. fields: copied to the lines of its answers."""

    row: int
    fields: JsonObject
    prompt: Content

    def seed(self, seed: int, sample: int) -> int:
        """Returns the seed of answer number `sample` to this row."""
        return stable_hash(seed, "answer", self.row, sample) % 2**31


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Settings of sampling. A temperature of 0 is greedy decoding.

    n: answers per prompt. chat_template: `model`, `none` or a file; an endpoint only distinguishes `none`, which sends
    the prompt as plain text. date: today's date for a template that asks for it. batch_size: prompts per batch of a
    model on this machine.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256
    n: int = 1
    seed: int = 0
    chat_template: str = "model"
    date: str | None = None
    batch_size: int = 16


def read_prompts(path: str, limit: int | None = None) -> tuple[list[PromptRow], Counter[str]]:
    """Returns the first `limit` rows with a prompt, and how many rows were dropped for which reason.

    The text of `question` becomes one user message; `prompt` is messages, or text that no template renders. No other
    field is required. Raises UserError if no row has a prompt.
    """
    report = Report()

    def parse(row: Row, values: JsonObject) -> PromptRow:
        return PromptRow(row.number, dict(row.value or {}), _prompt(values))

    prompts = list(itertools.islice(open_table(path, _FIELDS, report=report).parse(parse), limit))
    if not prompts:
        first = f"; row {report.rejected[0]['row']}: {report.rejected[0]['found']}" if report.rejected else ""
        raise UserError(f"{path}: no row has a prompt: expected `question` or `prompt`, text or messages{first}")
    return prompts, report.dropped


def _prompt(values: Mapping[str, object]) -> Content:
    if "question" in values:
        question = f.content(values["question"], "question", "empty_question")
        return tuple(question) if is_messages(question) else user_turn(str(question))
    f.need(values, "prompt")
    return f.content(values["prompt"], "prompt", "empty_question")


def item_prompts(items: Sequence[Item], task: str) -> list[PromptRow]:
    """Returns the items of a task as prompts to be answered in words."""
    return [PromptRow(number, item_fields(item, task), user_turn(item.prompt)) for number, item in enumerate(items)]


def item_fields(item: Item, task: str) -> JsonObject:
    """Returns the fields that an answer's line has besides the answer."""
    return {"id": item.id, "task": task, "question": item.question, **item.groups, **item.fields}
