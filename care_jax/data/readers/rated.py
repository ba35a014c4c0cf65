"""Reads rated responses, one per row, and groups them by question: CARE's files and any other table."""

import dataclasses
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TypeAlias

from care_jax.data.cultures import culture_language, parse_category, parse_culture
from care_jax.data.questions import Content, Question, Response, assistant_turn, plain_text, question_key, user_turn
from care_jax.data.rows import fields
from care_jax.data.rows.fields import BadField
from care_jax.data.rows.report import Report
from care_jax.data.rows.row import Row, describe
from care_jax.data.rows.table import Table
from care_jax.textfiles import JsonObject

# What rows say about a question: culture, relation, category, language, reference, translated.
About: TypeAlias = dict[str, str | None]


@dataclass(slots=True)
class _Group:
    """A question whose responses are being collected. responses: equal ones by text, or each by row with
    `every_response`."""

    key: str
    prompt: Content
    file: str
    about: About
    responses: dict[Hashable, list[Response]] = field(default_factory=dict)

    def question(self) -> Question:
        responses = tuple(map(_merge, self.responses.values()))
        return Question(self.prompt, responses, self.key, file=self.file, **self.about)


def _merge(copies: list[Response]) -> Response:
    """Returns the first of several equal responses, with their mean rating and the smallest of their sources."""
    ratings = [copy.rating for copy in copies if copy.rating is not None]
    mean = math.fsum(ratings) / len(ratings) if ratings else None
    return dataclasses.replace(copies[0], rating=mean, source=min(copy.source for copy in copies))


@dataclass(slots=True)
class Groups:
    """Collects rated responses by question key. A response that occurs twice is kept once, with the mean rating.

    If rows of one question differ (in the spelling of the prompt, a detail, a response's source), the smallest of the
    values is kept, so that the result does not depend on the order of the rows.
    """

    report: Report
    by_key: dict[Hashable, _Group] = field(default_factory=dict)
    # (prompt text, culture) -> key. Rows of one question repeat its text, and keys are slow to make. With
    # `every_response` texts are their own keys, as each response is scored after the prompt of its own row.
    keys: dict[tuple[str, str | None], Hashable] = field(default_factory=dict)

    def add(self, row: Row, prompt: Content, response: Response, about: About | None = None) -> None:
        """Adds one response to a prompt. about: what its row says of the question, with the same keys in every row."""
        group = self._group(row, prompt, about or {})
        identity = (row.number, len(group.responses)) if self.report.every_response else plain_text(response.content)
        copies = group.responses.setdefault(identity, [])
        if copies:
            conflict = all(response.rating != copy.rating for copy in copies)
            reason = "conflicting_duplicate" if conflict else "duplicate"
            rated = f"rated {response.rating}, there {copies[0].rating}" if conflict else "with the same rating"
            file, first = self.report.locate(copies[0].row_number, row.file)
            place = f"row {first}" if file == row.file else f"row {first} of {file}"
            self.report.drop(row, reason, response.field, f"the same response as in {place}, {rated}")
        copies.append(response)

    def _group(self, row: Row, prompt: Content, about: About) -> _Group:
        """Returns the group of a prompt, updated with these values."""
        identity = plain_text(prompt), about.get("culture")
        key = self.keys.get(identity)
        if key is None:
            question = question_key(prompt, identity[1])
            key = self.keys[identity] = identity if self.report.every_response else question
            if key not in self.by_key:
                self.by_key[key] = _Group(question, prompt, row.file, dict(about))
            elif identity[0] < plain_text(self.by_key[key].prompt):
                self.by_key[key].prompt = prompt
        group = self.by_key[key]
        for name, value in about.items():
            smallest = group.about[name]
            if value is not None and (smallest is None or value < smallest):
                group.about[name] = value
        return group

    def questions(self) -> list[Question]:
        """Returns the questions in the order of their first rows."""
        return [group.question() for group in self.by_key.values()]


@dataclass(frozen=True, slots=True)
class Known:
    """Cultures and categories that the user named, in addition to the registered ones."""

    cultures: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()


def read_care(table: Table, known: Known) -> list[Question]:
    """Reads CARE's training rows: question, response, rating 1-10, source, category, culture; reference, translation.

    A file that has references but neither responses nor ratings is CARE's evaluation set: see `read_care_eval`.
    """
    return _read_rated_rows(table, known, 1.0, 10.0)


def read_rated(table: Table, known: Known) -> list[Question]:
    """Reads any table of question, response and rating (larger is better, any scale), mapped by `columns:`."""
    return _read_rated_rows(table, known, -math.inf, math.inf)


def read_care_eval(table: Table, known: Known) -> list[Question]:
    """Reads CARE's evaluation items: a question with its reference as the only response, not rated."""
    groups = Groups(table.report)
    table.for_each(lambda row, values: _add_reference(groups, row, values, known))
    return groups.questions()


_CARE_FIELDS = frozenset(("response", "rating", "category", "culture"))


def _read_rated_rows(table: Table, known: Known, low: float, high: float) -> list[Question]:
    """Reads rated rows.

    A field that no row has is absent from the data; if only some rows lack it, those rows are damaged. So rows wait
    until all fields have been seen, or until the end of the data.
    """
    groups = Groups(table.report)
    waiting: list[tuple[Row, JsonObject]] = []
    seen: set[str] = set()

    def add(row: Row, values: JsonObject) -> None:
        try:
            if "response" not in seen and "rating" not in seen and "reference" in seen:
                _add_reference(groups, row, values, known)
            else:
                _add_response(groups, row, values, known, (low, high), seen)
        except BadField as bad:
            table.drop(row, bad)

    for row, values in table:
        seen.update(values)
        if seen >= _CARE_FIELDS:
            add(row, values)
        else:
            waiting.append((row, values))
    for row, values in waiting:
        add(row, values)
    return groups.questions()


def _add_reference(groups: Groups, row: Row, values: JsonObject, known: Known) -> None:
    fields.need(values, "question", "reference")
    question = fields.text(values["question"], "question", "empty_question")
    reference = fields.text(values["reference"], "reference", "empty_response")
    about = _about(values, known, groups.report)
    response = Response(assistant_turn(reference), None, "reference", row.number, "answer")
    groups.add(row, user_turn(question), response, about)


def _add_response(
    groups: Groups, row: Row, values: JsonObject, known: Known, bounds: tuple[float, float], seen: set[str]
) -> None:
    fields.need(values, "question", "response")
    if not groups.report.every_response:
        fields.need(values, "rating", *(name for name in ("category", "culture") if name in seen))
    question = fields.text(values["question"], "question", "empty_question")
    response = fields.text(values["response"], "response", "empty_response")
    rating = None
    try:
        rating = fields.rating(values.get("rating"), "rating", *bounds)
    except BadField:
        if not groups.report.every_response:
            raise
    about = _about(values, known, groups.report)
    source = fields.optional_text(values.get("source"), "source") or "unknown"
    groups.add(row, user_turn(question), Response(assistant_turn(response), rating, source, row.number), about)


def _about(values: JsonObject, known: Known, report: Report) -> About:
    category = parse_category(values.get("category"), known.categories)
    if category is None and "category" in values and not report.every_response:
        raise BadField("unknown_category", "category", describe(values["category"]))
    relation, culture = parse_culture(values.get("culture"), known.cultures)
    if culture is None and "culture" in values and not report.every_response:
        raise BadField("unknown_culture", "culture", describe(values["culture"]))
    language, reference, translated = (
        fields.optional_text(values.get(name), name) for name in ("language", "reference", "translated")
    )
    return {
        "culture": culture,
        "relation": relation,
        "category": category,
        "language": language or culture_language(culture),
        "reference": reference,
        "translated": translated,
    }
