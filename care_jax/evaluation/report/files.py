"""The files of a report: tables as Markdown, CSV and JSON, the plots, and the page to browse."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence

from care_jax.evaluation.report import page, plots
from care_jax.evaluation.report.records import Record
from care_jax.evaluation.report.tables import ALL, Cell, Report
from care_jax.textfiles import JsonObject, markdown_table, write_json, write_whole, writing

NOTES = (
    "Intervals: 95 % bootstrap over questions, drawn within each culture and category.",
    "failed: answers without a rating of the judge, and missing answers; they are not in the means.",
    "Differences are paired over the questions that both systems answered.",
)


def write_report(report: Report, records: Sequence[Record], folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Writes report.md, report.csv, report.json, index.html and the plots into the folder; returns the files."""
    place = pathlib.Path(folder)
    files = [place / name for name in ("report.md", "report.csv", "report.json", "index.html")]
    with writing("--out", place):
        place.mkdir(parents=True, exist_ok=True)
        write_whole(files[0], markdown(report))
        write_whole(files[1], table_csv(report))
        write_json(files[2], as_json(report))
        write_whole(files[3], page.page(records, report.systems))
        return [*files, *plots.draw(report, place)]


def markdown(report: Report) -> str:
    """Returns the tables as Markdown: for each task the cultures, then the averages and differences."""
    lines: list[str] = []
    for task in report.tasks:
        lines += [f"## {task}", ""]
        for culture in report.cultures[task]:
            lines += _culture_table(report, task, culture)
        lines += _averages_table(report, task)
        lines += _differences_table(report, task)
    lines += [f"- {note}" for note in NOTES]
    return "\n".join(lines).rstrip() + "\n"


def _culture_table(report: Report, task: str, culture: str) -> list[str]:
    categories = [
        name
        for name in report.categories[task]
        if any(report.cell(task, "cell", system, culture, name) for system in report.systems)
    ]
    rows = []
    for system in report.systems:
        macro = report.cell(task, "macro", system, culture, ALL)
        if macro is not None:
            cells = [report.cell(task, "cell", system, culture, name) for name in categories]
            rows.append([system, *map(_with_interval, [*cells, macro]), str(macro.n), str(macro.failed)])
    heading = [] if culture == ALL else [f"### {culture}", ""]
    return heading + markdown_table(["system", *categories, "macro average", "n", "failed"], rows)


def _averages_table(report: Report, task: str) -> list[str]:
    if len(report.cultures[task]) < 2:
        return []
    rows = []
    for system in report.systems:
        macro, micro = (report.cell(task, kind, system, ALL, ALL) for kind in ("macro", "micro"))
        if macro is not None and micro is not None:
            rows.append([system, _with_interval(macro), _with_interval(micro), str(macro.n), str(macro.failed)])
    head = ["system", "macro average", "mean of all items", "n", "failed"]
    return ["### All cultures", "", *markdown_table(head, rows)]


def _differences_table(report: Report, task: str) -> list[str]:
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
    limits = "" if cell.low is None or cell.high is None else f" [{cell.low:{form}}, {cell.high:{form}}]"
    return f"{cell.value:{form}}{limits}"


def table_csv(report: Report) -> str:
    """Returns the cells as CSV, one per line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, report.cells))
    return text.getvalue()


def as_json(report: Report) -> JsonObject:
    """Returns the cells by task, and the names of the systems."""
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
