"""What was read and what was dropped, why and where: nothing is lost in silence."""

import dataclasses
import json
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from care_jax.data.questions import Question
from care_jax.data.rows.files import Row
from care_jax.errors import UserError
from care_jax.textfiles import write_whole

REASONS = (
    "unreadable",
    "missing_field",
    "empty_question",
    "empty_response",
    "invalid_rating",
    "duplicate",
    "conflicting_duplicate",
    "unknown_category",
    "unknown_culture",
    "truncated_away",
)
POLICIES = ("all", "best_worst", "adjacent", "random")


@dataclass(slots=True)
class Report:
    """The account of one reading. rows = responses + everything dropped (pairs of one row count as that row).

    dropped: rows by reason. rejected: one entry a dropped row: file, row, field, reason, found. What was read well but
    not asked for (another culture, another source) is dropped as `not_selected`, counted and not listed.
    every_response: readers keep each response that has a question, duplicates too, and leave out what else is wrong
    with its row (rating, category, culture): for scoring, where a row asks for its number and teaches nothing.
    """

    strict: bool = False
    every_response: bool = False
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    truncated: set[tuple[int, int]] = field(default_factory=set)

    def drop(self, row: Row, reason: str, field: str, found: str) -> None:
        """Counts and lists a row that is not used; with `strict`, ends the reading (a duplicate loses nothing)."""
        if self.strict and reason != "duplicate":
            raise UserError(
                f"{row.place}, {field}: {reason.replace('_', ' ')}: {found} (strict: the first bad row ends it)"
            )
        self.dropped[reason] += 1
        entry = {"file": row.file, "row": row.row, "field": field, "reason": reason, "found": found}
        self.rejected.append(entry if row.line is None else entry | {"line": row.line})

    def drop_truncated(self, question: int, response: int, found: str) -> None:
        """Counts and lists a response of `questions` whose every completion token lies behind the maximum length."""
        if (question, response) in self.truncated:
            return
        item = self.questions[question]
        row = item.responses[response]
        paired = row.field in ("chosen", "rejected") and any(q == question for q, _ in self.truncated)
        self.truncated.add((question, response))
        self.dropped["truncated_away"] += not paired
        self.rejected.append(
            {"file": item.file, "row": row.row, "field": row.field, "reason": "truncated_away", "found": found}
        )

    def to_json(self) -> dict[str, Any]:
        """`rows questions responses dropped ratings by pairs`, as data_report.json holds them."""
        return merge([self])


def merge(reports: Sequence[Report]) -> dict[str, Any]:
    """One account of several readings: every number is the sum over them."""
    from care_jax.data.preferences import question_pairs

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
            if any(r.field in ("chosen", "rejected") for r in kept):
                responses += len(kept) == len(question.responses)  # a pair is one row, and lost with either side
            else:
                responses += len(kept)
            by["culture"][question.culture or "none"] += 1
            by["category"][question.category or "none"] += 1
            ratings.update(r.rating for r in kept if r.rating is not None)
            if len(kept) < len(question.responses):
                question = dataclasses.replace(question, responses=tuple(kept))
            for policy in POLICIES:
                pairs[policy] += len(question_pairs(question, policy, 1.0, None, 0))
    return {
        "rows": sum(report.rows for report in reports),
        "questions": questions,
        "responses": responses,
        "dropped": dict(dropped),
        "ratings": {f"{value:g}": ratings[value] for value in sorted(ratings)},
        "by": {dimension: dict(sorted(counts.items())) for dimension, counts in by.items()},
        "pairs": dict(pairs),
    }


def write_report(folder: str | os.PathLike[str], reports: Sequence[Report]) -> dict[str, Any]:
    """Writes data_report.json and rejected_rows.jsonl into the folder, each whole or not at all; returns the former."""
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    account = merge(reports)
    rejected = [entry for report in reports for entry in report.rejected]
    write_whole(place / "data_report.json", json.dumps(account, ensure_ascii=False, indent=2) + "\n")
    write_whole(place / "rejected_rows.jsonl", "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in rejected))
    return account
