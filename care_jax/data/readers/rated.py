"""Rated responses, one a row, to groups of one question: CARE's two schemas, its evaluation set, anyone's own table."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from care_jax.data.questions import (
    Content,
    Message,
    Question,
    Response,
    culture_language,
    parse_category,
    parse_culture,
    plain_text,
    question_key,
)
from care_jax.data.rows import fields as f
from care_jax.data.rows.files import Row
from care_jax.data.rows.report import Report


def user_turn(text: str) -> tuple[Message, ...]:
    """A question as a conversation of one user message."""
    return ({"role": "user", "content": text},)


def assistant_turn(text: str) -> tuple[Message, ...]:
    """A response as one assistant message."""
    return ({"role": "assistant", "content": text},)


@dataclass(slots=True)
class _RatedAnswer:
    content: Content
    ratings: list[float | None]
    source: str
    row: int
    field: str


@dataclass(slots=True)
class Groups:
    """Collects rated responses by question key; the same response twice stands once, rated by the mean.

    Where rows of one question differ (in the spelling of the prompt, a detail, a response's source), the least of the
    values stands, so that the order of the rows decides nothing.
    """

    report: Report
    about: dict[Any, dict[str, Any]] = field(default_factory=dict)
    answers: dict[Any, dict[Any, _RatedAnswer]] = field(default_factory=dict)
    # Rows of one question come with one text: its key is made once. With `every_response`, texts that differ at all are
    # apart, as each response is scored behind its own row's words.
    keys: dict[tuple[str, str | None], Any] = field(default_factory=dict)

    def add(
        self,
        row: Row,
        prompt: Content,
        response: Content,
        rating: float | None,
        source: str,
        *,
        name: str = "response",
        **about: Any,
    ) -> None:
        """One response to a prompt. about: culture, relation, category, language, reference, translated."""
        asked = plain_text(prompt), about.get("culture")
        place = self.keys.get(asked)
        if place is None:
            key = question_key(prompt, asked[1])
            place = self.keys[asked] = asked if self.report.every_response else key
            if place not in self.about:
                self.about[place] = {"key": key, "prompt": prompt, "file": row.file, **about}
                self.answers[place] = {}
            elif asked[0] < plain_text(self.about[place]["prompt"]):
                self.about[place]["prompt"] = prompt
        known = self.about[place]
        for detail, value in about.items():
            if value is not None and (known[detail] is None or value < known[detail]):
                known[detail] = value
        words = (row.number, len(self.answers[place])) if self.report.every_response else plain_text(response)
        same = self.answers[place].get(words)
        if same is None:
            self.answers[place][words] = _RatedAnswer(response, [rating], source, row.number, name)
            return
        conflict = rating not in same.ratings
        reason = "conflicting_duplicate" if conflict else "duplicate"
        rated = f"rated {rating}, there {same.ratings[0]}" if conflict else "rated alike"
        self.report.drop(row, reason, name, f"the same response as in row {same.row}, {rated}")
        same.ratings.append(rating)
        same.source = min(same.source, source)

    def questions(self) -> list[Question]:
        """The questions, in the order in which they first came."""
        return [
            Question(
                responses=tuple(
                    Response(a.content, _mean(a.ratings), a.source, a.row, a.field)
                    for a in self.answers[place].values()
                ),
                **about,
            )
            for place, about in self.about.items()
        ]


def _mean(ratings: list[float | None]) -> float | None:
    known = [r for r in ratings if r is not None]
    return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Known:
    """Cultures and categories that the user named, beyond the known ones."""

    cultures: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()


def read_care(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """CARE's training rows: question, response, rating 1-10, source, category, culture; reference and translation.

    A file without any response or rating, but with references, is CARE's evaluation set: see `read_care_eval`.
    """
    return _read(rows, fields, report, known, 1.0, 10.0)


def read_rated(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """Any table of question, response and rating (larger is better, any scale), mapped by `columns:`."""
    return _read(rows, fields, report, known, float("-inf"), float("inf"))


def read_care_eval(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """CARE's evaluation items: a question with its reference, which stands as the only, unrated response."""
    groups = Groups(report)
    for row, found in good_rows(rows, fields, report):
        try:
            _add_item(groups, row, found, known)
        except f.Bad as bad:
            f.drop(report, row, bad)
    return groups.questions()


_SPOKEN_OF = frozenset(("response", "rating", "category", "culture"))


def _read(
    rows: Iterable[Row], fields: f.Fields, report: Report, known: Known, low: float, high: float
) -> list[Question]:
    groups = Groups(report)
    # A column that no row has is one that the data do not speak of; one that only some rows lack is damage. So a row
    # that lacks what none before it had waits for the rows behind it.
    waiting: list[tuple[Row, dict[str, Any]]] = []
    seen: set[str] = set()

    def add(row: Row, found: Mapping[str, Any]) -> None:
        try:
            if "response" not in seen and "rating" not in seen and "reference" in seen:
                _add_item(groups, row, found, known)
                return
            f.need(found, "question", "response")
            if not report.every_response:
                f.need(found, "rating", *(key for key in ("category", "culture") if key in seen))
            question = f.text(found["question"], "question", "empty_question")
            response = f.text(found["response"], "response", "empty_response")
            rating = _rating(found, low, high, report)
            about = _about(found, known, report)
            source = f.optional_text(found.get("source"), "source") or "unknown"
            groups.add(row, user_turn(question), assistant_turn(response), rating, source, **about)
        except f.Bad as bad:
            f.drop(report, row, bad)

    for row, found in good_rows(rows, fields, report):
        seen.update(found)
        if seen >= _SPOKEN_OF:
            add(row, found)
        else:
            waiting.append((row, found))
    for row, found in waiting:
        add(row, found)
    return groups.questions()


def _add_item(groups: Groups, row: Row, found: Mapping[str, Any], known: Known) -> None:
    f.need(found, "question", "reference")
    question = f.text(found["question"], "question", "empty_question")
    reference = f.text(found["reference"], "reference", "empty_response")
    about = _about(found, known, groups.report)
    groups.add(row, user_turn(question), assistant_turn(reference), None, "reference", name="answer", **about)


def _rating(found: Mapping[str, Any], low: float, high: float, report: Report) -> float | None:
    try:
        return f.rating(found.get("rating"), "rating", low, high)
    except f.Bad:
        if report.every_response:
            return None
        raise


def _about(found: Mapping[str, Any], known: Known, report: Report) -> dict[str, Any]:
    category = parse_category(found.get("category"), known.categories)
    if category is None and "category" in found and not report.every_response:
        raise f.Bad("unknown_category", "category", f.describe(found["category"]))
    relation, culture = parse_culture(found.get("culture"), known.cultures)
    if culture is None and "culture" in found and not report.every_response:
        raise f.Bad("unknown_culture", "culture", f.describe(found["culture"]))
    about: dict[str, Any] = {"culture": culture, "relation": relation, "category": category}
    for name in ("language", "reference", "translated"):
        value = found.get(name)
        about[name] = None if value is None else f.optional_text(value, name)
    about["language"] = about["language"] or culture_language(culture)
    return about


def good_rows(rows: Iterable[Row], fields: f.Fields, report: Report) -> Iterable[tuple[Row, dict[str, Any]]]:
    """Each readable row with its fields; counts all rows, and drops the unreadable."""
    for row in rows:
        report.rows += 1
        if row.value is None:
            report.drop(row, "unreadable", "", row.problem)
        else:
            yield row, fields.of(row.value)
