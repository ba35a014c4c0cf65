"""Tables over systems: culture x category means with intervals, macro averages, paired differences from a base."""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from care_jax.data.questions import CATEGORIES
from care_jax.errors import UserError, nearest
from care_jax.evaluation.report.records import Record
from care_jax.evaluation.statistics import interval, paired
from care_jax.textfiles import markdown_table, write_whole

ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A mean over items. kind: cell (one culture and category), macro (mean of the categories' means), micro (of all
    items), difference (from the base, over shared items; macro over the categories)."""

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
    """All cells, and the names in the order of the tables."""

    cells: list[Cell]
    tasks: list[str]
    systems: list[str]
    base: str | None
    cultures: dict[str, list[str]]
    categories: dict[str, list[str]]

    def cell(self, task: str, kind: str, system: str, culture: str, category: str) -> Cell | None:
        wanted = (task, kind, system, culture, category)
        return next((c for c in self.cells if (c.task, c.kind, c.system, c.culture, c.category) == wanted), None)


Values = dict[tuple[str, str], dict[str, float]]  # (culture, category) -> item -> mean over its samples


def make_report(records: Sequence[Record], base: str | None = None) -> Report:
    """The report of all systems. Raises UserError where `base` is none of them."""
    tasks = list(dict.fromkeys(record.task for record in records))
    systems = list(dict.fromkeys(record.system for record in records))
    if base is not None and base not in systems:
        raise UserError(f"--base: found {base!r}{nearest(base, systems)}, expected one of {', '.join(systems)}")
    if base is not None:
        systems = [base, *(one for one in systems if one != base)]
    cells: list[Cell] = []
    cultures: dict[str, list[str]] = {}
    categories: dict[str, list[str]] = {}
    for task in tasks:
        own = [record for record in records if record.task == task]
        cultures[task] = sorted({record.culture for record in own})
        categories[task] = sorted({record.category for record in own}, key=_category_order)
        by_system = {system: _values(one for one in own if one.system == system) for system in systems}
        failed = {system: _failed(one for one in own if one.system == system) for system in systems}
        for system in systems:
            if by_system[system]:
                cells += _means(task, system, by_system[system], failed[system])
        for system in systems:
            if base is not None and system != base and by_system[system] and by_system[base]:
                cells += _differences(task, system, base, by_system[system], by_system[base])
    return Report(cells, tasks, systems, base, cultures, categories)


def _category_order(name: str) -> tuple[int, str]:
    known = list(CATEGORIES)
    return (known.index(name) if name in known else len(known), name)


def _values(records: Iterable[Record]) -> Values:
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for record in records:
        if record.value is not None:
            found.setdefault((record.culture, record.category), {}).setdefault(record.item, []).append(record.value)
    return {
        place: {item: sum(values) / len(values) for item, values in items.items()} for place, items in found.items()
    }


def _failed(records: Iterable[Record]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for record in records:
        found[record.culture, record.category] = found.get((record.culture, record.category), 0) + (
            record.value is None
        )
    return found


def _scopes(values: Values) -> list[tuple[str, list[tuple[str, str]]]]:
    """(culture or all, its places) of every average."""
    places = sorted(values)
    cultures = sorted({culture for culture, _ in places})
    scopes = [(culture, [place for place in places if place[0] == culture]) for culture in cultures]
    return scopes if cultures == [ALL] else [*scopes, (ALL, places)]


def _means(task: str, system: str, values: Values, failed: dict[tuple[str, str], int]) -> list[Cell]:
    cells = []

    def add(kind: str, culture: str, category: str, groups: list[list[float]], lost: int) -> None:
        around = interval(groups)
        cells.append(Cell(task, kind, system, culture, category, around.mean, around.low, around.high, around.n, lost))

    for (culture, category), items in sorted(values.items()):
        add("cell", culture, category, [list(items.values())], failed.get((culture, category), 0))
    for culture, places in _scopes(values):
        groups = [list(values[place].values()) for place in places]
        lost = sum(count for place, count in failed.items() if culture in (ALL, place[0]))
        add("macro", culture, ALL, groups, lost)
        add("micro", culture, ALL, [[value for group in groups for value in group]], lost)
    return cells


def _differences(task: str, system: str, base: str, own: Values, other: Values) -> list[Cell]:
    cells = []
    shared: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for place, items in own.items():
        both = [(value, other[place][item]) for item, value in items.items() if item in other.get(place, {})]
        if both:
            shared[place] = both

    def add(culture: str, category: str, groups: list[list[tuple[float, float]]]) -> None:
        found = paired(groups)
        d = found.difference
        cells.append(
            Cell(
                task,
                "difference",
                system,
                culture,
                category,
                d.mean,
                d.low,
                d.high,
                d.n,
                0,
                base,
                found.wins,
                found.ties,
                found.losses,
            )
        )

    for (culture, category), pairs in sorted(shared.items()):
        add(culture, category, [pairs])
    for culture, places in _scopes({place: {} for place in shared}):
        add(culture, ALL, [shared[place] for place in places])
    return cells


# --- writing ---------------------------------------------------------------------------------------------------------


def markdown(report: Report, notes: Sequence[str] = ()) -> str:
    """The tables as markdown: for each task and culture the categories' means, then averages and differences."""
    out: list[str] = []
    for task in report.tasks:
        out += [f"## {task}", ""]
        for culture in report.cultures[task]:
            if culture != ALL:
                out += [f"### {culture}", ""]
            categories = [
                one for one in report.categories[task] if any(
                    report.cell(task, "cell", system, culture, one) for system in report.systems
                )
            ]  # fmt: skip
            head = ["system", *categories, "macro average", "n", "failed"]
            rows = []
            for system in report.systems:
                whole = report.cell(task, "macro", system, culture, ALL)
                if whole is None:
                    continue
                cells = [report.cell(task, "cell", system, culture, one) for one in categories]
                rows.append(
                    [system, *map(_with_interval, cells), _with_interval(whole), str(whole.n), str(whole.failed)]
                )
            out += markdown_table(head, rows)
        out += _averages(report, task)
        out += _paired_table(report, task)
    out += [f"- {note}" for note in notes]
    return "\n".join(out).rstrip() + "\n"


def _averages(report: Report, task: str) -> list[str]:
    if len(report.cultures[task]) < 2:
        return []
    rows = []
    for system in report.systems:
        macro, micro = (report.cell(task, kind, system, ALL, ALL) for kind in ("macro", "micro"))
        if macro is not None and micro is not None:
            rows.append([system, _with_interval(macro), _with_interval(micro), str(macro.n), str(macro.failed)])
    return [
        "### All cultures",
        "",
        *markdown_table(["system", "macro average", "mean of all items", "n", "failed"], rows),
    ]


def _paired_table(report: Report, task: str) -> list[str]:
    rows = [
        [c.system, c.culture, c.category, _with_interval(c, sign=True), f"{c.wins} / {c.ties} / {c.losses}", str(c.n)]
        for c in report.cells
        if c.task == task and c.kind == "difference"
    ]
    if not rows:
        return []
    head = ["system", "culture", "category", "difference", "win / tie / loss", "n"]
    return [f"### Difference from {report.base}", "", *markdown_table(head, rows)]


def _with_interval(cell: Cell | None, sign: bool = False) -> str:
    if cell is None:
        return "-"
    form = "+.3f" if sign else ".3f"
    around = "" if cell.low is None or cell.high is None else f" [{cell.low:{form}}, {cell.high:{form}}]"
    return f"{cell.value:{form}}{around}"


def table_csv(report: Report) -> str:
    """Every cell, a line each."""
    out = io.StringIO()
    names = [field.name for field in dataclasses.fields(Cell)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for cell in report.cells:
        writer.writerow(["" if (value := getattr(cell, name)) is None else value for name in names])
    return out.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """Every cell, by task."""
    return {
        "systems": report.systems,
        "base": report.base,
        "tasks": {
            task: [
                {key: value for key, value in dataclasses.asdict(cell).items() if key != "task"}
                for cell in report.cells
                if cell.task == task
            ]
            for task in report.tasks
        },
    }


NOTES = (
    "Intervals: 95 % bootstrap over questions, drawn within each culture and category.",
    "failed: answers that the judge gave no rating, or that are missing; they have no part in the means.",
    "Differences are paired over the questions that both systems answered.",
)


def write(report: Report, records: Sequence[Record], folder: str | pathlib.Path) -> list[pathlib.Path]:
    """report.md, report.csv, report.json, the plots and index.html in the folder; returns the files."""
    from care_jax.evaluation.report import page, plots

    place = pathlib.Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        texts = {
            "report.md": markdown(report, NOTES),
            "report.csv": table_csv(report),
            "report.json": json.dumps(as_json(report), ensure_ascii=False, indent=1) + "\n",
            "index.html": page.page(records, report.systems),
        }
        for name, text in texts.items():
            write_whole(place / name, text)
    except OSError as error:
        raise UserError(f"--out: cannot write in {place}: {error.strerror}") from None
    return [*(place / name for name in texts), *plots.draw(report, place)]
