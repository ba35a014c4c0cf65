"""Answers read from files: of a model here or at an endpoint, of a search engine, of people."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from care_jax.data.questions import normalise
from care_jax.data.rows.fields import FieldFinder
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.evaluation.items import Item
from care_jax.textfiles import JsonObject

_ALIASES = {
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
FIELDS = FieldFinder.make(_ALIASES, None)


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of a file of answers. row: the whole line. response: None if it is null or absent."""

    row: JsonObject
    id: str | None
    question: str | None
    response: str | None
    logps: tuple[float, ...] | None
    system: str | None


@dataclass(frozen=True, slots=True)
class MatchedAnswers:
    """Answers by item id, in the order of the file. unmatched: number of lines that answer no item."""

    answers: Mapping[str, list[Answer]]
    unmatched: int
    systems: tuple[str, ...]


def read_answers(path: str) -> list[Answer]:
    """Returns the lines of a file of answers (JSON lines, JSON, CSV, parquet); [] for an empty file."""
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise UserError(f"--responses: no such file: {path}")
    if place.is_file() and place.suffix != ".parquet" and not place.read_bytes().strip(b" \t\r\n\xef\xbb\xbf"):
        return []
    return [_answer(row.place, row.value or {}, values) for row, values in open_table(path, _ALIASES)]


def _answer(place: str, row: JsonObject, values: JsonObject) -> Answer:
    response, logps = values.get("response"), values.get("logps")
    if response is not None and not isinstance(response, str):
        response = json.dumps(response, ensure_ascii=False)
    if "response" not in values and logps is None:
        raise UserError(f"{place}: no response; its keys are {', '.join(map(str, row))}")
    try:
        numbers = None if logps is None else tuple(float(value) for value in logps)
    except (TypeError, ValueError):
        raise UserError(f"{place}, logps: expected a list of numbers, found {logps!r}"[:300]) from None
    id_ = None if values.get("id") in (None, "") else str(values["id"])
    texts = {name: value for name in ("question", "system") if isinstance(value := values.get(name), str)}
    return Answer(row, id_, texts.get("question"), response, numbers, texts.get("system"))


def match_answers(items: Sequence[Item], answers: Sequence[Answer]) -> MatchedAnswers:
    """Returns the answers by the item that they name by id, or else by the text of its question."""
    ids = {item.id for item in items}
    by_question: dict[str, list[str]] = {}
    for item in items:
        by_question.setdefault(normalise(item.question), []).append(item.id)
    matched: dict[str, list[Answer]] = {}
    unmatched = 0
    for answer in answers:
        candidates = [answer.id] if answer.id is not None and answer.id in ids else []
        if not candidates and answer.question is not None:
            candidates = by_question.get(normalise(answer.question), [])
        if len(candidates) != 1:  # none, or several items with one wording
            unmatched += 1
        elif answer.response is not None or answer.logps is not None:
            matched.setdefault(candidates[0], []).append(answer)
    systems = dict.fromkeys(answer.system for answer in answers if answer.system)
    return MatchedAnswers(matched, unmatched, tuple(systems))
