"""Search results as answers: snippets are judged like other responses, and the best one of a question counts."""

import dataclasses
import pathlib
from collections.abc import Sequence

from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.evaluation.items import Item
from care_jax.textfiles import JsonObject, read_lines, write_lines

_FIELDS = {
    "question_id": ("question_id", "id"),
    "question": ("question", "query"),
    "engine": ("engine",),
    "language": ("language", "lang"),
    "rank": ("rank", "position"),
    "url": ("url", "link"),
    "response": ("snippet", "response", "text"),
}


@dataclasses.dataclass(frozen=True)
class SnippetFilter:
    """Which snippets are read. best: ranks per question. engine: only of this search engine.

    language: only in this language; None: in that of the question, which is the item's, or English if `english`.
    """

    best: int | None = None
    engine: str | None = None
    language: str | None = None
    english: bool = False


def read_snippets(path: str, items: Sequence[Item], system: str, wanted: SnippetFilter) -> list[JsonObject]:
    """Returns rows {question_id, engine, language, rank, url, snippet} as lines of answers to the items.

    A row may hold `response` instead of `snippet`. Raises UserError if no row belongs to an item.
    """
    by_id = {item.id: item for item in items}
    by_question = {item.question: item for item in items}
    lines = []
    for row, values in open_table(path, _FIELDS):
        if "response" not in values:
            columns = ", ".join(map(str, row.value or ()))
            raise UserError(f"{row.place}: no snippet and no response; its columns are {columns}")
        item = by_id.get(str(values.get("question_id"))) or by_question.get(str(values.get("question")))
        if item is None or not _passes(values, item, wanted):
            continue
        line: JsonObject = {"id": item.id, "question": item.question, **item.groups, **item.fields}
        line |= {key: values[key] for key in ("engine", "rank", "url") if key in values}
        lines.append({**line, "response": values["response"], "system": system})
    if not lines:
        raise UserError(f"{path}: no row answers any of the task's {len(items)} questions (by question_id or question)")
    return lines


def _passes(values: JsonObject, item: Item, wanted: SnippetFilter) -> bool:
    if wanted.engine not in (None, values.get("engine")):
        return False
    if wanted.best is not None and int(values.get("rank") or 1) > wanted.best:
        return False
    language = wanted.language or ("en" if wanted.english else item.groups.get("language"))
    searched = values.get("language")
    return not searched or not language or _primary(str(searched)) == _primary(language)


def _primary(language: str) -> str:
    return language.split("-")[0].lower()


def keep_best(rated: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the best-rated line of each question to `out`, or its first line if none has a rating."""
    best: dict[str, JsonObject] = {}
    for line in read_lines(rated):
        id_ = str(line["id"])
        kept = best.setdefault(id_, line)
        if line["rating"] is not None and (kept["rating"] is None or line["rating"] > kept["rating"]):
            best[id_] = line
    write_lines(out, best.values())
