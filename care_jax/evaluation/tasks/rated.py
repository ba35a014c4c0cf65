"""Tasks whose answers a judge rates: CARE's evaluation questions, and LLM-GLOBE's open questions."""

from collections import Counter

from care_jax.data import readers
from care_jax.data.cultures import culture_id
from care_jax.data.questions import plain_text
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import MatchedAnswers
from care_jax.evaluation.items import Item, ItemScore, Options, Outcome, TaskItems, select_items, summarize

_GLOBE = {
    "id": ("id", "question_id"),
    "question": ("question", "prompt", "item"),
    "category": ("dimension", "domain", "category"),
    "language": ("language", "lang"),
    "culture": ("culture", "country"),
}


def read_care_items(path: str, options: Options) -> TaskItems:
    """Reads CARE's evaluation questions: {Arabic,Chinese,Japanese}-test.json, a folder of them, or the hub's rows.

    The id is `culture-number`, by the position in the culture's file. The reference is the native one even if the
    question is asked in English.
    """
    reading = readers.read(
        "care_eval", path, query_language=options.query_language, translations=options.translations,
        columns=options.columns,
    )  # fmt: skip
    items = []
    numbers: Counter[str] = Counter()
    for question in reading.questions:
        culture = question.culture or "none"
        numbers[culture] += 1
        language = {"language": question.language} if question.language else {}
        fields = {"culture": culture, "category": question.category, "reference": question.reference}
        prompt = plain_text(question.prompt)
        items.append(
            Item(
                id=f"{culture}-{numbers[culture]:04d}",
                question=prompt,
                prompt=prompt,
                groups={"culture": culture, "category": question.category or "none", **language},
                language="en" if options.query_language == "english" else question.language,
                fields=fields | {"query_language": options.query_language},
            )
        )
    dropped = Counter({reason: count for reason, count in reading.report.dropped.items() if count})
    return TaskItems(select_items(items, options, path), dropped)


def read_globe(path: str, options: Options) -> TaskItems:
    """Reads LLM-GLOBE's questions by a map of columns (question, category, language); the rubric `globe` rates 1 to 7.

    Written without the published files: if their columns have other names, give these by --columns.
    """
    items = []
    for row, values in open_table(path, _GLOBE, options.columns):
        if not str(values.get("question") or "").strip():
            raise UserError(f"{row.place}: no question; its columns are {', '.join(map(str, row.value or ()))}")
        groups = {key: str(values[key]) for key in ("category", "culture", "language") if values.get(key)}
        if "culture" in groups:
            groups["culture"] = culture_id(groups["culture"])
        items.append(
            Item(
                id=str(values.get("id") or row.number),
                question=str(values["question"]),
                prompt=str(values["question"]),
                groups=groups,
                language=values.get("language"),
                fields={key: groups[key] for key in ("culture", "category") if key in groups} | {"rubric": "globe"},
            )
        )
    return TaskItems(select_items(items, options, path))


def score_rated(task_items: TaskItems, matched: MatchedAnswers, options: Options) -> Outcome:
    """Returns the mean of the judge's ratings, which are in the lines that `care-jax judge` writes.

    An answer without a rating is not in the mean.
    """
    return summarize([_score_item(item, matched) for item in task_items.items], "mean rating", worst=None)


def _score_item(item: Item, matched: MatchedAnswers) -> ItemScore:
    answers = matched.answers.get(item.id, [])
    ratings = [answer.row.get("rating") for answer in answers]
    numbers = [float(rating) for rating in ratings if isinstance(rating, int | float) and not isinstance(rating, bool)]
    if numbers:
        return ItemScore(item, sum(numbers) / len(numbers))
    if any("judge_failed" in answer.row for answer in answers):
        return ItemScore(item, None, "failed")
    return ItemScore(item, None, "scored" if answers else "missing")
