"""What a task is made of: items to be answered, and what a scorer makes of the answers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from care_jax.errors import UserError, nearest

Mode = Literal["parity", "strict"]
Method = Literal["auto", "logprob", "generate"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a task is read, asked and scored.

    mode: parity computes as the published script does, its quirks too; strict does what that script meant.
    method: how options are chosen; auto takes what the task's authors do where the answerer can. language: only the
    items of this language or country. prompt: which of a task's own prompts. columns: field -> column of the data.
    num_fewshot: questions with their answers before each question, the first of `fewshot`, a file or dataset.
    """

    mode: Mode = "parity"
    method: Method = "auto"
    query_language: Literal["native", "english"] = "native"
    language: str | None = None
    prompt: str | None = None
    translations: str | None = None
    columns: Mapping[str, str | None] | None = None
    limit: int | None = None
    num_fewshot: int = 0
    fewshot: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to be answered.

    prompt: what a model is given, as a user's message, or as it stands where no template renders it. groups: dimension
    -> value, for the means by group. choices: texts whose log-probabilities are compared: behind `prompt`, or `whole`
    (texts of their own). letters: what names a choice in words; right: indices of the right choices. unit: items of
    one unit count together. fields: stand in the answers' lines; secret: only the scorer reads it.
    """

    id: str
    question: str
    prompt: str
    groups: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    letters: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    whole: bool = False
    unit: str | None = None
    language: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    secret: Any = None


@dataclass(frozen=True, slots=True)
class TaskItems:
    """The items of a task out of its files; excluded: those that do not count, by reason."""

    items: list[Item]
    excluded: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """One item's score. status: missing (no answer) and failed (nothing could be made of it) items are counted."""

    item: Item
    value: float | None
    status: Literal["scored", "missing", "failed"] = "scored"
    prediction: str | None = None
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The scores of a task. scores: other measures by name; by: dimension -> group -> score; by_n: how many items."""

    scored: list[Scored]
    metric: str
    score: float | None
    scores: Mapping[str, float | None]
    by: Mapping[str, Mapping[str, float]]
    by_n: Mapping[str, Mapping[str, int]]


def limited(items: list[Item], options: Options, place: str) -> list[Item]:
    """The items of the wanted language or country, then the first `limit` of them."""
    if options.language is not None:
        wanted = options.language.casefold().replace(" ", "_")
        present = sorted({value for item in items for value in _places(item)})
        items = [item for item in items if wanted in (value.casefold().replace(" ", "_") for value in _places(item))]
        if not items:
            raise UserError(
                f"--language: {place} has no {options.language!r}{nearest(options.language, present)}; "
                f"it has {', '.join(present) or 'none'}"
            )
    return items if options.limit is None else items[: options.limit]


def _places(item: Item) -> list[str]:
    return [value for key in ("language", "country", "culture") if (value := item.groups.get(key))]


def mean(values: list[float]) -> float | None:
    """The mean, or None over nothing."""
    return sum(values) / len(values) if values else None


def summarize(scored: list[Scored], metric: str, scale: float = 1.0, worst: float | None = 0.0) -> Outcome:
    """Means over all items and by each dimension of their groups, times `scale`.

    worst: what a missing or failed item counts as; None: such items have no part in the means.
    """
    values = [(one, worst if one.value is None else one.value) for one in scored]
    counted = [(one, value) for one, value in values if value is not None]
    groups: dict[str, dict[str, list[float]]] = {}
    for one, value in counted:
        for dimension, name in one.item.groups.items():
            groups.setdefault(dimension, {}).setdefault(name, []).append(value)
    more: dict[str, list[float]] = {}
    for one, _ in counted:
        for name, value in one.more.items():
            more.setdefault(name, []).append(value)
    whole = mean([value for _, value in counted])
    return Outcome(
        scored,
        metric,
        None if whole is None else whole * scale,
        {name: sum(found) / len(counted) * scale for name, found in more.items()},
        {
            dimension: {name: sum(found) / len(found) * scale for name, found in sorted(names.items())}
            for dimension, names in sorted(groups.items())
        },
        {
            dimension: {name: len(found) for name, found in sorted(names.items())}
            for dimension, names in sorted(groups.items())
        },
    )
