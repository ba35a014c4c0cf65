"""Answers out of files, from wherever they come: a model of ours, an endpoint, a search engine, people."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from care_jax.data.questions import normalise
from care_jax.data.rows.fields import Fields
from care_jax.data.rows.files import open_rows
from care_jax.errors import UserError
from care_jax.evaluation.items import Item

ALIASES = {
    "id": ("id", "ID", "MCQID", "question_id", "item_id", "qid", "custom_id"),
    "question": ("question", "prompt_question", "query"),
    "response": ("response", "completion", "model_response", "output", "full_res"),
    "system": ("system", "model", "model_name"),
    "culture": ("culture", "associated_culture"),
    "category": ("category", "cul_type", "culture_type"),
    "reference": ("reference", "answer", "gold", "reference_answer"),
    "human_rating": ("human_rating", "human"),
    "rating": ("rating",),
    "logps": ("logps",),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of a file of answers. row: as it stood there; response: None where it is null or absent."""

    row: Mapping[str, Any]
    id: str | None
    question: str | None
    response: str | None
    logps: tuple[float, ...] | None
    system: str | None


@dataclass(frozen=True, slots=True)
class Matched:
    """Answers by item id, in their order; unmatched: lines that answer no item."""

    answers: Mapping[str, list[Answer]]
    unmatched: int
    systems: tuple[str, ...]


def read_answers(path: str) -> list[Answer]:
    """The lines of a file of answers (JSON lines, JSON, CSV, parquet); an empty file holds none."""
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise UserError(f"--responses: no such file: {path}")
    if place.is_file() and place.suffix != ".parquet" and not place.read_bytes().strip(b" \t\r\n\xef\xbb\xbf"):
        return []
    fields = Fields.make(ALIASES, None)
    answers = []
    for row in open_rows(path):
        if row.value is None:
            raise UserError(f"{row.place}: {row.problem}")
        answers.append(_answer(row.place, row.value, fields.of(row.value)))
    return answers


def _answer(place: str, row: Mapping[str, Any], found: Mapping[str, Any]) -> Answer:
    response, logps = found.get("response"), found.get("logps")
    if response is not None and not isinstance(response, str):
        response = json.dumps(response, ensure_ascii=False)
    if "response" not in found and logps is None:
        raise UserError(f"{place}: no response; its keys are {', '.join(map(str, row))}")
    try:
        numbers = None if logps is None else tuple(float(value) for value in logps)
    except (TypeError, ValueError):
        raise UserError(f"{place}, logps: expected a list of numbers, found {logps!r}"[:300]) from None
    id_, question, system = found.get("id"), found.get("question"), found.get("system")
    return Answer(
        row,
        None if id_ is None or id_ == "" else str(id_),
        question if isinstance(question, str) else None,
        response,
        numbers,
        system if isinstance(system, str) else None,
    )


def match(items: Sequence[Item], answers: Iterable[Answer]) -> Matched:
    """Answers to the items they name by id, else by the question's text."""
    ids = {item.id for item in items}
    by_question: dict[str, list[str]] = {}
    for item in items:
        by_question.setdefault(normalise(item.question), []).append(item.id)
    found: dict[str, list[Answer]] = {}
    systems: dict[str, None] = {}
    unmatched = 0
    for one in answers:
        if one.system:
            systems.setdefault(one.system)
        named = [one.id] if one.id in ids else []
        if not named and one.question is not None:
            named = by_question.get(normalise(one.question), [])
            named = named if len(named) == 1 else []  # one wording for several items says nothing
        if not named:
            unmatched += 1
            continue
        if one.response is not None or one.logps is not None:  # else a line that says there is no answer
            found.setdefault(str(named[0]), []).append(one)
    return Matched(found, unmatched, tuple(systems))
