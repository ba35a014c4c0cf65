"""Tasks whose answers a judge rates: CARE's own questions, and LLM-GLOBE's open ones."""

from collections import Counter
from typing import Any

from care_jax.data import readers
from care_jax.data.questions import culture_id, plain_text
from care_jax.data.rows.fields import Fields
from care_jax.data.rows.files import open_rows
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import Matched
from care_jax.evaluation.items import Item, Options, Outcome, Scored, TaskItems, limited, summarize


def read_care(path: str, options: Options) -> TaskItems:
    """CARE's evaluation questions: {Arabic,Chinese,Japanese}-test.json, a folder of them, or the hub's rows.

    The id is `culture-number`, by the place in the culture's file. The reference stays the native one also when the
    question is asked in English.
    """
    reading = readers.read(
        "care_eval", path, query_language=options.query_language, translations=options.translations,
        columns=options.columns,
    )  # fmt: skip
    items = []
    place: Counter[str] = Counter()
    for question in reading.questions:
        culture = question.culture or "none"
        place[culture] += 1
        groups = {"culture": culture, "category": question.category or "none"}
        if question.language:
            groups["language"] = question.language
        asked = plain_text(question.prompt)
        items.append(
            Item(
                id=f"{culture}-{place[culture]:04d}",
                question=asked,
                prompt=asked,
                groups=groups,
                language="en" if options.query_language == "english" else question.language,
                fields={
                    "culture": culture,
                    "category": question.category,
                    "reference": question.reference,
                    "query_language": options.query_language,
                },
            )
        )
    dropped = Counter({reason: count for reason, count in reading.report.dropped.items() if count})
    return TaskItems(limited(items, options, path), dropped)


_GLOBE = {
    "id": ("id", "question_id"),
    "question": ("question", "prompt", "item"),
    "dimension": ("dimension", "domain", "category"),
    "language": ("language", "lang"),
    "culture": ("culture", "country"),
}


def read_globe(path: str, options: Options) -> TaskItems:
    """LLM-GLOBE's items by a column map (question, dimension, language): rated 1 to 7 by the rubric `globe`.

    The published files were not seen; name the columns by --columns where they differ.
    """
    fields, items = Fields.make(_GLOBE, options.columns), []
    for row in open_rows(path):
        found = {} if row.value is None else fields.of(row.value)
        if not str(found.get("question") or "").strip():
            raise UserError(f"{row.place}: no question; its columns are {', '.join(map(str, row.value or ()))}")
        groups = {"category": str(found["dimension"])} if found.get("dimension") else {}
        if found.get("culture"):
            groups["culture"] = culture_id(str(found["culture"]))
        if found.get("language"):
            groups["language"] = str(found["language"])
        about: dict[str, Any] = {key: groups[key] for key in ("culture", "category") if key in groups}
        items.append(
            Item(
                id=str(found.get("id") or row.number),
                question=str(found["question"]),
                prompt=str(found["question"]),
                groups=groups,
                language=found.get("language"),
                fields={**about, "rubric": "globe"},
            )
        )
    return TaskItems(limited(items, options, path))


def score_rated(taken: TaskItems, matched: Matched, options: Options) -> Outcome:
    """The mean of the judge's ratings, which stand in the lines of `care-jax judge`'s output.

    An answer that was not judged has no rating, and no part in the mean.
    """
    scored = []
    for item in taken.items:
        answers = matched.answers.get(item.id, [])
        given = [_rating(one.row) for one in answers]
        ratings = [value for value in given if value is not None]
        if ratings:
            scored.append(Scored(item, sum(ratings) / len(ratings)))
        else:
            judged = any("judge_failed" in one.row for one in answers)
            status: Any = "failed" if judged else "scored" if answers else "missing"
            scored.append(Scored(item, None, status))
    return summarize(scored, "mean rating", worst=None)


def _rating(row: Any) -> float | None:
    value = row.get("rating")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
