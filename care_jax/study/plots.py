"""Plots of a study: curves over a key of the grid, gain against the score before training, bars of the arms."""

import pathlib
import re
from collections.abc import Iterator, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from care_jax.evaluation.report.plots import new_figure, save
from care_jax.study.spec import Study, last_part
from care_jax.textfiles import JsonObject

ALL = "all"


def curves(study: Study, measure: str, rows: Sequence[JsonObject], folder: pathlib.Path) -> pathlib.Path:
    """Draws means with intervals over `study.x`: a line per arm and other grid values, a panel per culture."""
    means = [row for row in rows if row["kind"] == "mean" and study.x in row["point"]]
    cultures = sorted(dict.fromkeys(row["culture"] for row in means), key=lambda culture: culture == ALL)
    figure = new_figure(4.2 * max(1, len(cultures)), 3.8)
    labels = [_label(row, without=study.x) for row in means]
    colours = {label: f"C{number}" for number, label in enumerate(dict.fromkeys(labels))}
    for culture, axes in _panels(figure, cultures):
        for label, colour in colours.items():
            points = [row for row, its in zip(means, labels) if (row["culture"], its) == (culture, label)]
            points.sort(key=lambda row: float(row["point"][study.x]))
            x = [float(row["point"][study.x]) for row in points]
            values = [row["value"] for row in points]
            if points:
                axes.errorbar(x, values, yerr=_errors(points), marker="o", capsize=3, color=colour, label=label)
        axes.set_xlabel(study.x or "")
        axes.set_ylabel(measure)
    return save(figure, _file(folder, "curves", measure))


def scatter(measure: str, rows: Sequence[JsonObject], folder: pathlib.Path) -> pathlib.Path:
    """Draws the gain against the score before training: a point per arm and category, a panel per culture."""
    cultures = list(dict.fromkeys(row["culture"] for row in rows))
    categories = list(dict.fromkeys(row["category"] for row in rows))
    markers = dict(zip(categories, ("osD^vP*X"[number % 8] for number in range(len(categories))), strict=True))
    figure = new_figure(4.2 * len(cultures), 3.9)
    for culture, axes in _panels(figure, cultures):
        for colour, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
            for row in rows:
                if (row["arm"], row["culture"]) == (arm, culture):
                    axes.scatter(row["start"], row["value"], color=f"C{colour}", marker=markers[row["category"]], s=36)
            axes.scatter([], [], color=f"C{colour}", label=arm)
        for category, marker in markers.items():
            axes.scatter([], [], color="0.4", marker=marker, label=category)
        axes.axhline(0, color="0.7", linewidth=1)
        axes.set_xlabel(f"{measure} before training")
        axes.set_ylabel("gain")
    return save(figure, _file(folder, "scatter", measure))


def bars(measure: str, rows: Sequence[JsonObject], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the arms' means over all cultures, with their intervals; no file if there are none."""
    means = [row for row in rows if row["kind"] == "mean" and row["culture"] == ALL]
    if not means:
        return []
    figure = new_figure(6.0, 1.2 + 0.42 * len(means))
    axes = figure.add_subplot()
    values = [row["value"] for row in means]
    axes.barh(range(len(means)), values, xerr=_errors(means), capsize=3, color="C0", height=0.6)
    axes.set_yticks(range(len(means)), [_label(row) for row in means])
    axes.invert_yaxis()
    axes.set_xlabel(f"{measure}, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    return [save(figure, _file(folder, "bars", measure))]


def _file(folder: pathlib.Path, kind: str, measure: str) -> pathlib.Path:
    return folder / f"{kind}_{re.sub(r'[^a-zA-Z0-9]+', '_', measure).strip('_')}.png"


def _label(row: JsonObject, without: str | None = None) -> str:
    """An arm with its grid values, except that of the key `without`."""
    point = row["point"].items()
    return ", ".join([row["arm"], *(f"{last_part(key)}={value}" for key, value in point if key != without)])


def _errors(rows: Sequence[JsonObject]) -> list[list[float]]:
    """Returns the lengths of the error bars below and above; 0 if there is no interval."""
    return [
        [0.0 if row["low"] is None else row["value"] - row["low"] for row in rows],
        [0.0 if row["high"] is None else row["high"] - row["value"] for row in rows],
    ]


def _panels(figure: Figure, cultures: Sequence[str]) -> Iterator[tuple[str, Axes]]:
    """Yields one panel per culture, then adds one legend of all panels below the figure, each label once."""
    handles: dict[str, Artist] = {}
    for number, culture in enumerate(cultures, start=1):
        axes = figure.add_subplot(1, len(cultures), number)
        axes.set_title(culture)
        axes.spines[["top", "right"]].set_visible(False)
        yield culture, axes
        artists, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, artists, strict=True))
    columns = min(4, len(handles))
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False)
