"""Judged and scored answers of several systems, out of their folders, for a report."""

import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from care_jax.data.questions import normalise, parse_category, parse_culture
from care_jax.data.rows.fields import Fields
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import ALIASES
from care_jax.evaluation.language import detect

_FALLBACKS = {"culture": ("country", "language"), "category": ("topic", "domain", "subject", "type")}


@dataclass(frozen=True, slots=True)
class Record:
    """One answer of one system, with its rating or score (None where it failed). item: what it is paired by
    across systems; id: the task's own."""

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
    id: str = ""
    missing: bool = False


def load_records(paths: Sequence[str]) -> list[Record]:
    """All judged (`rating`) and scored (`score`) lines under the folders or files, each folder a system's.

    A line's own `system` names it, unless two of the paths use the same name: then the folders do.
    """
    by_path: list[tuple[str, list[Record]]] = []
    for path in paths:
        place = pathlib.Path(path).expanduser()
        if not place.exists():
            raise UserError(f"no such folder or file: {path}")
        files = sorted(place.rglob("*.jsonl")) if place.is_dir() else [place]
        name = place.resolve().name if place.is_dir() else place.stem
        found = [record for file in files for record in _file(file, name)]
        if not found:
            raise UserError(
                f"{path}: holds no judged or scored answers (JSON lines with `rating`, from care-jax judge, or "
                "`score`, from care-jax evaluate)"
            )
        by_path.append((name, found))
    used = Counter(system for _, found in by_path for system in {record.system for record in found})
    records = []
    for name, found in by_path:
        for record in found:
            records.append(replace(record, system=name) if used[record.system] > 1 else record)
    return records


def _file(path: pathlib.Path, name: str) -> Iterator[Record]:
    fields = Fields.make(ALIASES, None)
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise UserError(f"{path} (line {number}): not JSON: {error}") from None
            if not isinstance(row, dict) or not ("rating" in row or ("score" in row and "status" in row)):
                return  # answers not yet judged, requests, metrics: another kind of file
            yield _record(row, fields.of(row), name)


def _record(row: Mapping[str, Any], found: Mapping[str, Any], name: str) -> Record:
    judged = "rating" in row
    value = row.get("rating") if judged else row.get("score")
    missing = row.get("status") == "missing" or row.get("judge_failed") == "no response"
    if not judged and value is None:
        value = 0.0  # a task's own scorer counts what is missing or says nothing as wrong
    question = str(found.get("question") or "")
    culture = _group(row, found, "culture")
    own = f"{normalise(question)}\t{culture}" if judged else str(row.get("id"))
    response = found.get("response")
    return Record(
        system=str(found.get("system") or name),
        task=str(row.get("task") or "care_eval"),
        item=own,
        culture=culture,
        category=_group(row, found, "category"),
        value=None if value is None else float(value),
        question=question,
        response="" if response is None else str(response),
        reference=str(found.get("reference") or ""),
        judgement=str(row.get("judgement") or row.get("prediction") or ""),
        judge=str(row.get("judge") or ""),
        language=detect(str(response or "")),
        id=str(row.get("id") or ""),
        missing=missing,
    )


def _group(row: Mapping[str, Any], found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if value in (None, ""):
        value = next((row[key] for key in _FALLBACKS[name] if row.get(key) not in (None, "")), "all")
    if name == "culture":
        return parse_culture(value)[1] or str(value)
    return parse_category(value) or str(value)
