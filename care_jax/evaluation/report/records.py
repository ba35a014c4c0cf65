"""Judged and scored answers of several systems, read from their folders for a report."""

import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from care_jax.data.cultures import parse_category, parse_culture
from care_jax.data.questions import normalise
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import FIELDS
from care_jax.evaluation.language import detect_language
from care_jax.textfiles import JsonObject, parse_lines

_FALLBACKS = {"culture": ("country", "language"), "category": ("topic", "domain", "subject", "type")}


@dataclass(frozen=True, slots=True)
class Record:
    """One answer of one system. value: its rating or score, or None if it has none.

    item: the key by which answers of several systems are paired. id: the id that the task gives the item.
    """

    system: str
    task: str
    item: str
    culture: str
    category: str
    value: float | None
    question: str
    response: str
    reference: str
    judgement: str
    judge: str
    language: str
    id: str


def load_records(paths: Sequence[str]) -> list[Record]:
    """Returns all judged (`rating`) and scored (`score`) lines in the folders or files, one of them per system.

    A system's name is the `system` of its lines. If several paths hold the same name, the names of their folders count.
    """
    by_path: list[tuple[str, list[Record]]] = []
    for path in paths:
        place = pathlib.Path(path).expanduser()
        if not place.exists():
            raise UserError(f"no such folder or file: {path}")
        files = sorted(place.rglob("*.jsonl")) if place.is_dir() else [place]
        name = place.resolve().name if place.is_dir() else place.stem
        records = [record for file in files for record in _read_file(file, name)]
        if not records:
            raise UserError(
                f"{path}: holds no judged or scored answers (JSON lines with `rating`, from care-jax judge, or "
                "`score`, from care-jax evaluate)"
            )
        by_path.append((name, records))
    uses = Counter(system for _, records in by_path for system in {record.system for record in records})
    return [
        replace(record, system=name) if uses[record.system] > 1 else record
        for name, records in by_path
        for record in records
    ]


def _read_file(path: pathlib.Path, name: str) -> Iterator[Record]:
    for _, row in parse_lines(path):
        if not isinstance(row, dict) or not ("rating" in row or ("score" in row and "status" in row)):
            return  # another kind of file: answers not yet judged, requests, metrics
        yield _record(row, FIELDS.of(row), name)


def _record(row: JsonObject, values: JsonObject, name: str) -> Record:
    judged = "rating" in row
    value = row.get("rating") if judged else row.get("score")
    if not judged and value is None:
        value = 0.0  # the scorer of a task counts a missing or unusable answer as wrong
    question = str(values.get("question") or "")
    culture = _group(row, values, "culture")
    response = values.get("response")
    return Record(
        system=str(values.get("system") or name),
        task=str(row.get("task") or "care_eval"),
        item=f"{normalise(question)}\t{culture}" if judged else str(row.get("id")),
        culture=culture,
        category=_group(row, values, "category"),
        value=None if value is None else float(value),
        question=question,
        response="" if response is None else str(response),
        reference=str(values.get("reference") or ""),
        judgement=str(row.get("judgement") or row.get("prediction") or ""),
        judge=str(row.get("judge") or ""),
        language=detect_language(str(response or "")),
        id=str(row.get("id") or ""),
    )


def _group(row: JsonObject, values: JsonObject, name: str) -> str:
    value = values.get(name)
    if value in (None, ""):
        value = next((row[key] for key in _FALLBACKS[name] if row.get(key) not in (None, "")), "all")
    if name == "culture":
        return parse_culture(value)[1] or str(value)
    return parse_category(value) or str(value)
