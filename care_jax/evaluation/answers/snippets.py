"""Search results as answers: snippets, judged like any other response, of which the best of a question counts."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from care_jax.data.rows.fields import Fields
from care_jax.data.rows.files import open_rows
from care_jax.errors import UserError
from care_jax.evaluation.items import Item
from care_jax.textfiles import write_lines

_FIELDS = {
    "question_id": ("question_id", "id"),
    "question": ("question", "query"),
    "engine": ("engine",),
    "language": ("language", "lang"),
    "rank": ("rank", "position"),
    "url": ("url", "link"),
    "response": ("snippet", "response", "text"),
}


def read_snippets(
    path: str,
    items: Sequence[Item],
    system: str,
    best: int | None = None,
    engine: str | None = None,
    language: str | None = None,
    *,
    english: bool = False,
) -> list[dict[str, Any]]:
    """Rows {question_id, engine, language, rank, url, snippet} as answers to the items, the first `best` ranks of each.

    Rows that hold `response` instead are taken as they are. engine, language: only these; without a language those
    searched for in the query's: the item's own, or with `english` English. Raises UserError where no row belongs to
    any item.
    """
    fields = Fields.make(_FIELDS, None)
    by_id = {item.id: item for item in items}
    by_question = {item.question: item for item in items}
    lines = []
    for row in open_rows(path):
        if row.value is None:
            raise UserError(f"{row.place}: {row.problem}")
        found = fields.of(row.value)
        if "response" not in found:
            raise UserError(f"{row.place}: no snippet and no response; its keys are {', '.join(map(str, row.value))}")
        item = by_id.get(str(found.get("question_id"))) or by_question.get(str(found.get("question")))
        rank = int(found.get("rank") or 1)
        if item is None or engine not in (None, found.get("engine")) or (best is not None and rank > best):
            continue
        searched, wanted = found.get("language"), language or ("en" if english else item.groups.get("language"))
        if searched and wanted and str(searched).split("-")[0].lower() != wanted.split("-")[0].lower():
            continue
        about: dict[str, Any] = {key: found[key] for key in ("engine", "rank", "url") if key in found}
        line: dict[str, Any] = {"id": item.id, "question": item.question}
        line |= dict(item.groups) | dict(item.fields) | about
        lines.append({**line, "response": found["response"], "system": system})
    if not lines:
        raise UserError(f"{path}: no row answers any of the task's {len(items)} questions (by question_id or question)")
    return lines


def best_of(rated: pathlib.Path, out: pathlib.Path) -> None:
    """Keeps each question's best-rated line; a question none of whose lines was rated keeps its first."""
    best: dict[str, dict[str, Any]] = {}
    for text in rated.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        held = best.setdefault(str(line["id"]), line)
        if line["rating"] is not None and (held["rating"] is None or line["rating"] > held["rating"]):
            best[str(line["id"])] = line
    write_lines(out, best.values())
