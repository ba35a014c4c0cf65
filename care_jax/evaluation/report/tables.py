"""Tables over systems: means by culture and category with intervals, averages, paired differences from a base."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from care_jax.data.cultures import CATEGORIES
from care_jax.errors import UserError, nearest
from care_jax.evaluation.report.records import Record
from care_jax.evaluation.statistics import interval, paired_difference

ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A mean over items.

    kind: `cell` (one culture and category), `macro` (mean of the categories' means), `micro` (mean of all items), or
    `difference` (from the base, over the items of both; macro over the categories). failed: items without a value.
    wins, ties, losses: items on which the system is better than the base, equal, or worse.
    """

    task: str
    kind: str
    system: str
    culture: str
    category: str
    value: float
    low: float | None
    high: float | None
    n: int
    failed: int = 0
    base: str = ""
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """All cells, and the names of tasks, systems, cultures and categories in the order of the tables."""

    cells: list[Cell]
    tasks: list[str]
    systems: list[str]
    base: str | None
    cultures: dict[str, list[str]]
    categories: dict[str, list[str]]

    def cell(self, task: str, kind: str, system: str, culture: str, category: str) -> Cell | None:
        wanted = (task, kind, system, culture, category)
        return next((c for c in self.cells if (c.task, c.kind, c.system, c.culture, c.category) == wanted), None)


class Group(NamedTuple):
    """The culture and category of an item."""

    culture: str
    category: str


Values: TypeAlias = dict[Group, dict[str, float]]  # group -> item -> mean over the samples of the item


def make_report(records: Sequence[Record], base: str | None = None) -> Report:
    """Returns the report over all systems. Raises UserError if `base` is none of them."""
    tasks = list(dict.fromkeys(record.task for record in records))
    systems = list(dict.fromkeys(record.system for record in records))
    if base is not None and base not in systems:
        raise UserError(f"--base: found {base!r}{nearest(base, systems)}, expected one of {', '.join(systems)}")
    if base is not None:
        systems.sort(key=lambda system: system != base)
    report = Report([], tasks, systems, base, {}, {})
    order = {name: number for number, name in enumerate(CATEGORIES)}
    for task in tasks:
        of_task = [record for record in records if record.task == task]
        report.cultures[task] = sorted({record.culture for record in of_task})
        categories = {record.category for record in of_task}
        report.categories[task] = sorted(categories, key=lambda name: (order.get(name, len(order)), name))
        values = {system: _values(record for record in of_task if record.system == system) for system in systems}
        for system in systems:
            unrated = [record for record in of_task if record.system == system and record.value is None]
            failed = Counter(Group(record.culture, record.category) for record in unrated)
            report.cells.extend(_means(task, system, values[system], failed))
        for system in systems:
            if base is not None and system != base:
                report.cells.extend(_differences(task, system, base, values))
    return report


def _values(records: Iterable[Record]) -> Values:
    samples: dict[Group, dict[str, list[float]]] = {}
    for record in records:
        if record.value is not None:
            items = samples.setdefault(Group(record.culture, record.category), {})
            items.setdefault(record.item, []).append(record.value)
    return {
        group: {item: sum(values) / len(values) for item, values in items.items()} for group, items in samples.items()
    }


def _scopes(groups: Iterable[Group]) -> list[tuple[str, list[Group]]]:
    """Returns what averages are taken over: (culture, its groups) of every culture, and (`all`, all groups)."""
    ordered = sorted(groups)
    cultures = sorted({group.culture for group in ordered})
    scopes = [(culture, [group for group in ordered if group.culture == culture]) for culture in cultures]
    return scopes if cultures == [ALL] else [*scopes, (ALL, ordered)]


def _means(task: str, system: str, values: Values, failed: Counter[Group]) -> Iterator[Cell]:
    def cell(kind: str, culture: str, category: str, samples: list[list[float]], failures: int) -> Cell:
        mean = interval(samples)
        return Cell(task, kind, system, culture, category, mean.mean, mean.low, mean.high, mean.n, failures)

    if not values:
        return
    for group, items in sorted(values.items()):
        yield cell("cell", group.culture, group.category, [list(items.values())], failed[group])
    for culture, groups in _scopes(values):
        samples = [list(values[group].values()) for group in groups]
        failures = sum(count for group, count in failed.items() if culture in (ALL, group.culture))
        yield cell("macro", culture, ALL, samples, failures)
        yield cell("micro", culture, ALL, [[value for group in samples for value in group]], failures)


def _differences(task: str, system: str, base: str, values: dict[str, Values]) -> Iterator[Cell]:
    if not (values[system] and values[base]):
        return
    shared: dict[Group, list[tuple[float, float]]] = {}
    for group, items in values[system].items():
        others = values[base].get(group, {})
        pairs = [(value, others[item]) for item, value in items.items() if item in others]
        if pairs:
            shared[group] = pairs

    def cell(culture: str, category: str, samples: list[list[tuple[float, float]]]) -> Cell:
        result = paired_difference(samples)
        mean = result.difference
        return Cell(
            task, "difference", system, culture, category, mean.mean, mean.low, mean.high, mean.n, base=base,
            wins=result.wins, ties=result.ties, losses=result.losses,
        )  # fmt: skip

    for group, pairs in sorted(shared.items()):
        yield cell(group.culture, group.category, [pairs])
    for culture, groups in _scopes(shared):
        yield cell(culture, ALL, [shared[group] for group in groups])
