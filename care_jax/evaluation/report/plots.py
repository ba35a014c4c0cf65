"""Plots of a report: a radar by category for each culture, and bars of the averages with their intervals."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from care_jax.evaluation.report.tables import ALL, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = object  # matplotlib is imported when something is drawn


def draw(report: Report, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes bars_{task}.png, and radar_{task}.png for a task of at least three categories; returns the files."""
    files = []
    for task in report.tasks:
        categories = [name for name in report.categories[task] if name != ALL]
        if len(categories) >= 3:
            files.append(_radar(report, task, categories, folder / f"radar_{task}.png"))
        files.append(_bars(report, task, folder / f"bars_{task}.png"))
    return files


def new_figure(width: float, height: float) -> Figure:
    """Returns a matplotlib figure of this size in inches, which needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes the picture and closes the figure; returns the path."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _radar(report: Report, task: str, categories: Sequence[str], path: pathlib.Path) -> pathlib.Path:
    cultures = report.cultures[task]
    angles = [2 * math.pi * number / len(categories) for number in range(len(categories))]
    figure = new_figure(4.6 * len(cultures), 4.8)
    top = max((cell.value for cell in report.cells if cell.task == task and cell.kind == "cell"), default=1.0)
    for number, culture in enumerate(cultures, start=1):
        axes = figure.add_subplot(1, len(cultures), number, projection="polar")
        for system in report.systems:
            cells = [report.cell(task, "cell", system, culture, name) for name in categories]
            if any(cells):
                values = [math.nan if cell is None else cell.value for cell in cells]
                axes.plot([*angles, angles[0]], [*values, values[0]], marker="o", markersize=3, label=system)
                if all(cells):
                    axes.fill(angles, values, alpha=0.08)
        axes.set_xticks(angles, categories)
        axes.set_ylim(0, top * 1.08)
        axes.set_title(culture, pad=16)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, max(1, len(labels))), frameon=False)
    return save(figure, path)


def _bars(report: Report, task: str, path: pathlib.Path) -> pathlib.Path:
    cultures = [*report.cultures[task], *([ALL] if len(report.cultures[task]) > 1 else [])]
    figure = new_figure(max(5.0, 1.2 + 0.5 * len(cultures) * (len(report.systems) + 1)), 4.0)
    axes = figure.add_subplot()
    width = 0.8 / len(report.systems)
    for number, system in enumerate(report.systems):
        shift = (number - (len(report.systems) - 1) / 2) * width
        cells = {place + shift: report.cell(task, "macro", system, name, ALL) for place, name in enumerate(cultures)}
        bars = [(x, cell.value) for x, cell in cells.items() if cell is not None]
        axes.bar([x for x, _ in bars], [value for _, value in bars], width * 0.92, label=system)
        limits = [
            (x, cell.value, abs(cell.low - cell.value), abs(cell.high - cell.value))
            for x, cell in cells.items()
            if cell is not None and cell.low is not None and cell.high is not None
        ]
        if limits:
            x, values, below, above = zip(*limits)
            axes.errorbar(x, values, yerr=[below, above], fmt="none", ecolor="black", capsize=3, linewidth=1)
    axes.set_xticks(range(len(cultures)), cultures)
    axes.set_ylabel("macro average, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(task)
    figure.legend(loc="outside lower center", ncols=min(4, len(report.systems)), frameon=False)
    return save(figure, path)
