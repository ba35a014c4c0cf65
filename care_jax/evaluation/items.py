"""The data types of a task: its options, the items to be answered, and their scores."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from care_jax.errors import UserError, nearest
from care_jax.textfiles import JsonObject

Mode = Literal["parity", "strict"]
Method = Literal["auto", "logprob", "generate"]
QueryLanguage = Literal["native", "english"]
Status = Literal["scored", "missing", "failed"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a task is read, asked and scored; the command line, a run's configuration and a study use these names.

    mode: parity computes what the published script computes, including its quirks; strict computes what that script
    was meant to. method: how options are chosen; auto does what the task's authors do if the answerer can. language:
    only the items of this language or country. prompt: which of the task's prompts. translations: a file of the
    questions in English. columns: field -> column of the data. limit: the number of items. num_fewshot: solved
    examples before each question, the first ones of `fewshot`, a file or dataset.
    """

    mode: Mode = "parity"
    method: Method = "auto"
    query_language: QueryLanguage = "native"
    language: str | None = None
    prompt: str | None = None
    translations: str | None = None
    columns: Mapping[str, str | None] | None = None
    limit: int | None = None
    num_fewshot: int = 0
    fewshot: str | None = None

    @classmethod
    def names(cls) -> list[str]:
        """Returns the names of all options."""
        return [option.name for option in dataclasses.fields(cls)]

    @classmethod
    def select(cls, values: JsonObject) -> "Options":
        """Takes the options from a mapping that may hold other keys too; None stands for the default."""
        return cls(**{name: values[name] for name in cls.names() if values.get(name) is not None})


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a task.

    prompt: the user's message, or the whole text if no template renders it. groups: dimension -> value, for means by
    group. choices: texts whose log-probabilities are compared, each as a continuation of `prompt`, or, if
    `standalone`, as a text of its own. letters: what an answer in words calls each choice. right: indices of the right
    choices. wordings: the options' own texts, which an answer may repeat. unit: items of one unit are scored together.
    fields: copied to the lines of the answers. annotation: further data for the task's scorer.
    """

    id: str
    question: str
    prompt: str
    groups: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    letters: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    standalone: bool = False
    wordings: tuple[str, ...] = ()
    unit: str | None = None
    language: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    annotation: object = None


@dataclass(frozen=True, slots=True)
class TaskItems:
    """The items that a task reads. excluded: how many questions do not count, by reason. notes: notes for the user."""

    items: list[Item]
    excluded: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The score of an item. status: missing without an answer, failed if nothing could be read from the answers.

    prediction: what was read from the answers.
    """

    item: Item
    value: float | None
    status: Status = "scored"
    prediction: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The scores of a task. by: dimension -> group -> score. by_n: item counts. scores: the measures by name."""

    item_scores: list[ItemScore]
    metric: str
    score: float | None
    by: Mapping[str, Mapping[str, float]]
    by_n: Mapping[str, Mapping[str, int]]
    scores: Mapping[str, float | None] = field(default_factory=dict)


def select_items(items: list[Item], options: Options, source: str) -> list[Item]:
    """Returns the items of the wanted language or country, the first `limit` of them. source: path, for messages."""
    if options.language is not None:
        wanted = _fold(options.language)
        present = sorted({value for item in items for value in _languages_and_countries(item)})
        items = [item for item in items if wanted in map(_fold, _languages_and_countries(item))]
        if not items:
            raise UserError(
                f"--language: {source} has no {options.language!r}{nearest(options.language, present)}; "
                f"it has {', '.join(present) or 'none'}"
            )
    return items if options.limit is None else items[: options.limit]


def _fold(name: str) -> str:
    return name.casefold().replace(" ", "_")


def _languages_and_countries(item: Item) -> list[str]:
    return [value for key in ("language", "country", "culture") if (value := item.groups.get(key))]


def mean_score(item: Item, values: Sequence[float], count: int, prediction: str | None = None) -> ItemScore:
    """Returns an item's mean over its answers.

    values: scores of the answers that could be read. count: number of all answers.
    """
    if not values:
        return ItemScore(item, None, "failed" if count else "missing", prediction)
    return ItemScore(item, sum(values) / len(values), "scored", prediction)


def summarize(item_scores: list[ItemScore], metric: str, scale: float = 1.0, worst: float | None = 0.0) -> Outcome:
    """Returns the means over all items and over the groups of each dimension, times `scale`.

    worst: the value of missing and failed items; None leaves these items out of the means.
    """
    values: list[float] = []
    by: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in item_scores:
        value = worst if score.value is None else score.value
        if value is None:
            continue
        values.append(value)
        for dimension, group in score.item.groups.items():
            by[dimension][group].append(value)
    grouped = {dimension: dict(sorted(groups.items())) for dimension, groups in sorted(by.items())}
    return Outcome(
        item_scores,
        metric,
        sum(values) / len(values) * scale if values else None,
        {
            dimension: {group: sum(numbers) / len(numbers) * scale for group, numbers in groups.items()}
            for dimension, groups in grouped.items()
        },
        {
            dimension: {group: len(numbers) for group, numbers in groups.items()}
            for dimension, groups in grouped.items()
        },
    )
