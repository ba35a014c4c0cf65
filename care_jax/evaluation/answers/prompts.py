"""Rows that ask something, whoever answers them: a model here or an endpoint. Needs no jax."""

import dataclasses
import itertools
from collections import Counter
from typing import Any

from care_jax.data.questions import Content, is_messages
from care_jax.data.readers.rated import user_turn
from care_jax.data.rows import fields as f
from care_jax.data.rows.report import Report
from care_jax.data.rows.row import Row
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject

_FIELDS = {"question": ("question", "query"), "prompt": ("prompt", "instruction")}


@dataclasses.dataclass(frozen=True)
class Asked:
    """One row of the input. row: its number, which its answers' seeds come from. fields: as it stood there."""

    row: int
    fields: dict[str, Any]
    prompt: Content


def read_prompts(path: str, limit: int | None = None) -> tuple[list[Asked], Counter[str]]:
    """The first `limit` rows that ask something, and how many were dropped for which reason.

    `question` is asked as one user message; `prompt` is messages, or text that no template renders. Nothing else is
    required of a row. Raises UserError where no row asks anything.
    """
    report = Report()

    def parse(row: Row, values: JsonObject) -> Asked:
        return Asked(row.number, dict(row.value or {}), _prompt(values))

    asked = list(itertools.islice(open_table(path, _FIELDS, report=report).parse(parse), limit))
    if not asked:
        first = f"; row {report.rejected[0]['row']}: {report.rejected[0]['found']}" if report.rejected else ""
        raise UserError(f"{path}: no row asks anything: a row needs `question` or `prompt`, text or messages{first}")
    return asked, report.dropped


def _prompt(found: dict[str, Any]) -> Content:
    if "question" in found:
        question = f.content(found["question"], "question", "empty_question")
        return tuple(question) if is_messages(question) else user_turn(str(question))
    f.need(found, "prompt")
    return f.content(found["prompt"], "prompt", "empty_question")
