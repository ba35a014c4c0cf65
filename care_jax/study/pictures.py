"""Curves over a grid key, initial score against gain, bars of arms."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from care_jax.evaluation.report.plots import new_figure, save
from care_jax.study.spec import Study

ALL = "all"


def _file(folder: pathlib.Path, kind: str, measure: str) -> pathlib.Path:
    return folder / f"{kind}_{re.sub(r'[^a-zA-Z0-9]+', '_', measure).strip('_')}.png"


def _label(row: dict[str, Any], but: str | None = None) -> str:
    """An arm and its place in the grid; but: without this key."""
    return ", ".join([row["arm"], *(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in row["point"].items() if k != but)])


def curves(study: Study, measure: str, rows: Sequence[dict[str, Any]], folder: pathlib.Path) -> pathlib.Path:
    """Mean with its interval over x, a line an arm and other grid values, a panel a culture."""
    own = [row for row in rows if row["kind"] == "mean" and study.x in row["point"]]
    scopes = sorted(dict.fromkeys(row["culture"] for row in own), key=lambda scope: scope == ALL)
    figure = new_figure(4.2 * max(1, len(scopes)), 3.8)
    names = [_label(row, but=study.x) for row in own]
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(names))}
    for number, scope in enumerate(scopes, start=1):
        axes = figure.add_subplot(1, len(scopes), number)
        for name, colour in colours.items():
            points = [row for row, its in zip(own, names) if (row["culture"], its) == (scope, name)]
            if not points:
                continue
            points.sort(key=lambda row: float(row["point"][study.x]))
            x = [float(row["point"][study.x]) for row in points]
            arms = [
                [row["value"] - (row["low"] if row["low"] is not None else row["value"]) for row in points],
                [(row["high"] if row["high"] is not None else row["value"]) - row["value"] for row in points],
            ]
            values = [row["value"] for row in points]
            axes.errorbar(x, values, yerr=arms, marker="o", capsize=3, color=colour, label=name)
        axes.set_title(scope)
        axes.set_xlabel(str(study.x))
        axes.set_ylabel(measure)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure)
    return save(figure, _file(folder, "curves", measure))


def scatter(measure: str, rows: Sequence[dict[str, Any]], folder: pathlib.Path) -> pathlib.Path:
    """Gain against the score before training, a point an arm and category, a panel a culture."""
    scopes = list(dict.fromkeys(row["culture"] for row in rows))
    categories = list(dict.fromkeys(row["category"] for row in rows))
    markers = "osD^vP*X"
    figure = new_figure(4.2 * len(scopes), 3.9)
    for number, scope in enumerate(scopes, start=1):
        axes = figure.add_subplot(1, len(scopes), number)
        for colour, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
            for row in rows:
                if (row["arm"], row["culture"]) == (arm, scope):
                    marker = markers[categories.index(row["category"]) % len(markers)]
                    axes.scatter(row["start"], row["value"], color=f"C{colour}", marker=marker, s=36)
            axes.scatter([], [], color=f"C{colour}", label=arm)
        for place, category in enumerate(categories):
            axes.scatter([], [], color="0.4", marker=markers[place % len(markers)], label=category)
        axes.axhline(0, color="0.7", linewidth=1)
        axes.set_title(scope)
        axes.set_xlabel(f"{measure} before training")
        axes.set_ylabel("gain")
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure)
    return save(figure, _file(folder, "scatter", measure))


def bars(measure: str, rows: Sequence[dict[str, Any]], folder: pathlib.Path) -> list[pathlib.Path]:
    """The arms' means over all cultures, with their intervals."""
    own = [row for row in rows if row["kind"] == "mean" and row["culture"] == ALL]
    if not own:
        return []
    names = [_label(row) for row in own]
    figure = new_figure(6.0, 1.2 + 0.42 * len(own))
    axes = figure.add_subplot()
    values = [row["value"] for row in own]
    arms = [
        [row["value"] - row["low"] if row["low"] is not None else 0.0 for row in own],
        [row["high"] - row["value"] if row["high"] is not None else 0.0 for row in own],
    ]
    axes.barh(range(len(own)), values, xerr=arms, capsize=3, color="C0", height=0.6)
    axes.set_yticks(range(len(own)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"{measure}, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    return [save(figure, _file(folder, "bars", measure))]


def _legend(figure: Any) -> None:
    named = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if named:
        labels = list(named)
        figure.legend(
            list(named.values()), labels, loc="outside lower center", ncols=min(4, max(1, len(labels))), frameon=False
        )
