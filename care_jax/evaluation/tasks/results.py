"""The result of a task: its score with an interval, by group, and what is missing or failed."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from care_jax.evaluation.answers.responses import Answer, MatchedAnswers, match_answers
from care_jax.evaluation.items import Item, Options, Outcome, TaskItems
from care_jax.evaluation.language import detect_language
from care_jax.evaluation.statistics import interval
from care_jax.evaluation.tasks.registry import Task
from care_jax.textfiles import JsonObject


def score(task: Task, task_items: TaskItems, answers: Sequence[Answer], options: Options) -> tuple[JsonObject, Outcome]:
    """Returns (result, outcome). result: `task system n excluded missing failed score metric interval scores by ...`.

    n: items that count. missing: items without an answer. failed: items with answers from which nothing could be read.
    length_cut: answers that reached the limit of tokens.
    """
    matched = match_answers(task_items.items, answers)
    outcome = task.score(task_items, matched, options)
    statuses = Counter(item_score.status for item_score in outcome.item_scores)
    all_answers = chain.from_iterable(matched.answers.values())
    result = {
        "task": task.name,
        "system": ", ".join(matched.systems) or None,
        "n": len(outcome.item_scores),
        "excluded": sum(task_items.excluded.values()),
        "missing": statuses["missing"],
        "failed": statuses["failed"],
        "score": outcome.score,
        "metric": outcome.metric,
        "interval": _interval(task, outcome),
        "scores": outcome.scores,
        "by": outcome.by,
        "by_n": outcome.by_n,
        "excluded_by": dict(task_items.excluded),
        "unmatched": matched.unmatched,
        "answer_language": _answer_languages(task_items.items, matched),
        "length_cut": sum(answer.row.get("finish_reason") == "length" for answer in all_answers),
        "mode": options.mode,
        "query_language": options.query_language,
        "notes": list(task_items.notes),
    }
    return result, outcome


def score_lines(outcome: Outcome, task: str, system: str | None) -> Iterator[JsonObject]:
    """Yields a line per item for reports: its groups, score and status."""
    for score in outcome.item_scores:
        yield {
            "id": score.item.id, "task": task, "system": system, **score.item.groups, "question": score.item.question,
            "prediction": score.prediction, "score": score.value, "status": score.status,
        }  # fmt: skip


def _interval(task: Task, outcome: Outcome) -> list[float | None] | None:
    """Returns the interval of the score, in its unit. Items without a value count 0, unless a judge or
    log-probabilities decide, when they do not count.
    """
    values = [item_score.value for item_score in outcome.item_scores if item_score.value is not None]
    if outcome.score is not None and task.kind not in ("judged", "logprob"):
        values += [0.0] * (len(outcome.item_scores) - len(values))
    if not values:
        return None
    around = interval([values])
    scale = 100.0 if task.name == "blend_sa" else 1.0
    return [None if end is None or not math.isfinite(end) else end * scale for end in (around.low, around.high)]


def _answer_languages(items: Sequence[Item], matched: MatchedAnswers) -> dict[str, dict[str, int]]:
    """Returns language of the question -> language of the answer -> number of answers."""
    counts: dict[str, Counter[str]] = {}
    for item in items:
        for answer in matched.answers.get(item.id, []):
            if answer.response:
                counts.setdefault(detect_language(item.question), Counter())[detect_language(answer.response)] += 1
    return {language: dict(answers.most_common()) for language, answers in counts.items()}
