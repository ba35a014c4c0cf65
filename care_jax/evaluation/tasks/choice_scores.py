"""Scores of multiple-choice tasks: the option with the highest log-probability, or the one that an answer names."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import Answer, Matched
from care_jax.evaluation.items import Item, ItemScore, Options, Outcome, Status, TaskItems, summarize
from care_jax.evaluation.tasks import parsing

Parser: TypeAlias = Callable[[Item, str, Options], str | None]  # an answer in words -> the letter of its option


def parse_letter(item: Item, text: str, options: Options) -> str | None:
    """Returns the letter of the option that an answer in words chooses, or None."""
    return parsing.option_letter(text, item.letters, item.wordings)


def parse_true_or_false(item: Item, text: str, options: Options) -> str | None:
    """Returns the last 'True' or 'False' in an answer, or None."""
    words = [word.capitalize() for word in text.replace("*", " ").replace(".", " ").split()]
    return next((word for word in reversed(words) if word in ("True", "False")), None)


def score_choices(task_items: TaskItems, matched: Matched, options: Options, parse: Parser = parse_letter) -> Outcome:
    """Returns acc, the share of items with the right option; a missing or unreadable answer is wrong."""
    return summarize([_score_item(item, matched, options, parse) for item in task_items.items], "acc")


def score_units(task_items: TaskItems, matched: Matched, options: Options) -> Outcome:
    """Returns acc over units: the share of questions of which every item is right."""
    units: dict[str, list[ItemScore]] = {}
    for item in task_items.items:
        units.setdefault(str(item.unit), []).append(_score_item(item, matched, options, parse_true_or_false))
    return summarize([_score_unit(unit, parts) for unit, parts in units.items()], "acc (all of a question right)")


def score_culturalbench(task_items: TaskItems, matched: Matched, options: Options) -> Outcome:
    """Scores hard items, which have units, by unit, and easy ones by item."""
    has_units = any(item.unit is not None for item in task_items.items)
    return (score_units if has_units else score_choices)(task_items, matched, options)


def _score_unit(unit: str, parts: Sequence[ItemScore]) -> ItemScore:
    first = parts[0].item
    item = Item(id=unit, question=first.question, prompt=first.prompt, groups=first.groups)
    statuses = {part.status for part in parts}
    status: Status = "missing" if "missing" in statuses else "failed" if "failed" in statuses else "scored"
    return ItemScore(item, float(all(part.value == 1.0 for part in parts)) if status == "scored" else None, status)


def add_unit_mean(outcome: Outcome) -> Outcome:
    """Adds the mean over units, each of which is the mean over its items."""
    units: dict[str, list[float]] = {}
    for score in outcome.item_scores:
        units.setdefault(str(score.item.unit), []).append(score.value or 0.0)
    mean = sum(sum(values) / len(values) for values in units.values()) / len(units) if units else None
    return replace(outcome, scores={"acc": outcome.score, "acc per ID (macro)": mean})


def average_answers(item: Item, values: Sequence[float], count: int, prediction: str | None = None) -> ItemScore:
    """Returns an item's mean over its answers. values: of the answers that could be read. count: of all its answers."""
    if not values:
        return ItemScore(item, None, "failed" if count else "missing", prediction)
    return ItemScore(item, sum(values) / len(values), "scored", prediction)


def check_logps(item: Item, logps: Sequence[float]) -> None:
    """Raises UserError unless there is a log-probability for each of the item's choices."""
    if len(logps) != len(item.choices):
        raise UserError(f"--responses: item {item.id}: {len(logps)} logps for {len(item.choices)} options")


def _score_item(item: Item, matched: Matched, options: Options, parse: Parser) -> ItemScore:
    answers = matched.answers.get(item.id, [])
    chosen = [_chosen_letter(item, answer, options, parse) for answer in answers]
    values = [float(item.letters.index(letter) in item.right) for letter in chosen if letter in item.letters]
    if values:
        values += [0.0] * (len(chosen) - len(values))
    return average_answers(item, values, len(answers), next((letter for letter in reversed(chosen) if letter), None))


def _chosen_letter(item: Item, answer: Answer, options: Options, parse: Parser) -> str | None:
    if answer.logps is None:
        return parse(item, answer.response or "", options)
    check_logps(item, answer.logps)
    return item.letters[answer.logps.index(max(answer.logps))]
