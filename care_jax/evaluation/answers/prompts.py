"""Rows that ask something, whoever answers them: a model here or an endpoint. Needs no jax."""

import dataclasses
from collections import Counter
from typing import Any

from care_jax.data.questions import Content, is_messages
from care_jax.data.readers.rated import good_rows, user_turn
from care_jax.data.rows import fields as f
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.report import Report
from care_jax.errors import UserError

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
    fields, report = f.Fields.make(_FIELDS, None), Report()
    asked: list[Asked] = []
    for row, found in good_rows(open_rows(path), fields, report):
        if limit is not None and len(asked) == limit:
            break
        try:
            asked.append(Asked(row.number, dict(row.value or {}), _prompt(found)))
        except f.Bad as bad:
            f.drop(report, row, bad)
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
