"""Counts what was read and lists what was dropped, where and why."""

import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from care_jax.data.preferences import POLICIES, PairPolicy, question_pairs
from care_jax.data.questions import Question, Response
from care_jax.data.rows.row import Row
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject, write_json, write_lines

# Why rows are dropped. These reasons are in every report, also if no row was dropped for them; readers have more.
REASONS = """
    unreadable missing_field empty_question empty_response invalid_rating duplicate conflicting_duplicate
    unknown_category unknown_culture truncated_away
""".split()  # noqa: SIM905


@dataclass(slots=True)
class Report:
    """What one reading read and dropped. rows = responses + all dropped rows; a pair of one row counts as that row.

    strict: the first row that cannot be used raises `UserError`. every_response: readers keep each response that has a
    question, duplicates too, and leave out a rating, category or culture that cannot be used; for scoring, where each
    row needs its number. dropped: number of rows by reason; rows that the user did not select (another culture, another
    source) count as `not_selected`. rejected: an entry per dropped row, as rejected_rows.jsonl holds them; none for
    `not_selected`. truncated: (question, response) of the responses in `drop_truncated`. first_rows: file -> the number
    over all files of its first row.
    """

    strict: bool = False
    every_response: bool = False
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rejected: list[JsonObject] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    truncated: set[tuple[int, int]] = field(default_factory=set)
    first_rows: dict[str, int] = field(default_factory=dict)

    def count(self, row: Row) -> None:
        """Counts a row that was read."""
        self.rows += 1
        self.first_rows.setdefault(row.file, row.number - row.number_in_file)

    def locate(self, number: int, default: str) -> tuple[str, int]:
        """Returns the file of a row (the default if none was counted) and its number there. number: over all files."""
        before = [(first, file) for file, first in self.first_rows.items() if first <= number]
        first, file = max(before, default=(0, default))
        return file, number - first

    def drop(self, row: Row, reason: str, field: str, value: str) -> None:
        """Counts and lists a dropped row. field: the field that cannot be used, or ''. value: what was found, in words.

        Raises `UserError` if `strict`, except for a duplicate.
        """
        if self.strict and reason != "duplicate":
            place = f"{row.place}, {field}" if field else row.place
            raise UserError(f"{place}: {reason.replace('_', ' ')}: {value}")
        self.dropped[reason] += 1
        entry = {"file": row.file, "row": row.number_in_file, "field": field, "reason": reason, "found": value}
        self.rejected.append(entry if row.line is None else entry | {"line": row.line})

    def drop_truncated(self, question: int, response: int, value: str) -> None:
        """Counts and lists a response of `questions` that has no completion token within the maximum length."""
        if (question, response) in self.truncated:
            return
        lost = self.questions[question].responses[response]
        counted = _is_paired(lost) and any(q == question for q, _ in self.truncated)  # a pair is one row
        self.truncated.add((question, response))
        self.dropped["truncated_away"] += not counted
        file, row = self.locate(lost.row_number, self.questions[question].file)
        self.rejected.append(dict(file=file, row=row, field=lost.field, reason="truncated_away", found=value))

    def to_json(self) -> JsonObject:
        """Returns `rows questions responses dropped ratings by pairs`, as data_report.json holds them."""
        return merge([self])


def _is_paired(response: Response) -> bool:
    return response.field in ("chosen", "rejected")


def merge(reports: Sequence[Report]) -> JsonObject:
    """Returns the JSON of several readings together: every number is the sum over them."""
    dropped: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    ratings: Counter[float] = Counter()
    by: dict[str, Counter[str]] = {"culture": Counter(), "category": Counter()}
    pairs: Counter[str] = Counter(dict.fromkeys(POLICIES, 0))
    questions = responses = 0
    for report in reports:
        dropped.update(report.dropped)
        for index, question in enumerate(report.questions):
            kept = [r for i, r in enumerate(question.responses) if (index, i) not in report.truncated]
            if not kept:
                continue
            questions += 1
            # A pair is one row, dropped with either response.
            responses += len(kept) == len(question.responses) if any(map(_is_paired, kept)) else len(kept)
            by["culture"][question.culture or "none"] += 1
            by["category"][question.category or "none"] += 1
            ratings.update(r.rating for r in kept if r.rating is not None)
            question = dataclasses.replace(question, responses=tuple(kept))
            for policy in POLICIES:
                pairs[policy] += len(question_pairs(question, PairPolicy(policy)))
    return {
        "rows": sum(report.rows for report in reports),
        "questions": questions,
        "responses": responses,
        "dropped": dict(dropped),
        "ratings": {f"{value:g}": ratings[value] for value in sorted(ratings)},
        "by": {dimension: dict(sorted(counts.items())) for dimension, counts in by.items()},
        "pairs": dict(pairs),
    }


def write_report(folder: str | os.PathLike[str], reports: Sequence[Report]) -> JsonObject:
    """Writes data_report.json and rejected_rows.jsonl into the folder; returns the content of the former."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    account = merge(reports)
    write_json(path / "data_report.json", account, indent=2)
    write_lines(path / "rejected_rows.jsonl", (entry for report in reports for entry in report.rejected))
    return account
