"""A study's tables: means over seeds and questions with intervals, gains, shares of the full gain, language gaps."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from care_jax.evaluation.statistics import crossed_interval
from care_jax.study.results import LOGPS, Observation, Table, table
from care_jax.study.spec import Study, as_text, last_part
from care_jax.textfiles import JsonObject, markdown_table, write_json, write_whole

ALL = "all"
SHARE = "share of the full gain"
Point: TypeAlias = tuple[tuple[str, str], ...]  # key and value of the grid, as text
Line: TypeAlias = tuple[str, Point]  # arm and point
Pick: TypeAlias = Callable[[Line, tuple[str, ...], str, str], list[Observation]]  # of line, when, culture, category


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one row of report.json is about."""

    measure: str
    kind: str
    line: Line
    culture: str = ALL
    category: str = ALL

    def row(self, value: float | None, low: float | None, high: float | None) -> JsonObject:
        arm, point = self.line
        return {
            "measure": self.measure, "kind": self.kind, "arm": arm, "point": dict(point), "culture": self.culture,
            "category": self.category, "value": value, "low": low, "high": high,
        }  # fmt: skip


def write(study: Study, observations: Sequence[Observation], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes report.md, report.json and the plots of every measure; returns the files."""
    from care_jax.study import plots  # loads matplotlib

    text, rows = [f"# {study.name}", ""], []
    files = [folder / "report.md", folder / "report.json"]
    for measure in dict.fromkeys(each.measure for each in observations):
        of_measure = [each for each in observations if each.measure == measure]
        cultures = sorted({each.culture for each in of_measure})
        measure_rows = _measure_rows(study, measure, of_measure, cultures)
        rows += measure_rows
        text += _measure_text(measure, measure_rows, cultures if cultures == [ALL] else [*cultures, ALL])
        if study.x is not None:
            files.append(plots.curves(study, measure, measure_rows, folder))
        by_category = [row for row in measure_rows if row["kind"] == "by category"]
        if by_category:
            files.append(plots.scatter(measure, by_category, folder))
        elif study.x is None:
            files += plots.bars(measure, measure_rows, folder)
    gap_rows = language_gaps(observations)
    rows += gap_rows
    text += _gap_text(gap_rows)
    text += [
        "- Means are over questions and seeds. Intervals are 95 % bootstrap intervals over both, drawn independently; "
        "if the seeds held out different questions, over the questions only.",
        "- gain: difference from the model that the run started from, paired by question.",
        "- share of the full gain: gain at this value / gain at the largest value; relative: gain / start.",
    ]
    write_whole(folder / "report.md", "\n".join(text) + "\n")
    write_json(folder / "report.json", rows)
    return files


# --- rows ------------------------------------------------------------------------------------------------------------


def _measure_rows(
    study: Study, measure: str, observations: Sequence[Observation], cultures: Sequence[str]
) -> list[JsonObject]:
    """Returns all rows of one measure: means, gains, gains by category, differences from the baseline, shares."""
    by_line: dict[Line, list[Observation]] = {}
    for each in observations:
        by_line.setdefault(_line(each), []).append(each)
    categories = sorted({each.category for each in observations})

    def pick(line: Line, when: tuple[str, ...], culture: str = ALL, category: str = ALL) -> list[Observation]:
        of_line = [each for each in by_line.get(line, ()) if each.when in when]
        of_culture = [each for each in of_line if culture in (ALL, each.culture)]
        return [each for each in of_culture if category in (ALL, each.category)]

    scopes = [ALL] if cultures == [ALL] else [*cultures, ALL]
    lines = [line for line in by_line if not study.train or pick(line, ("end", "given"))]
    done = ("end", "given") if study.train else ("end", "given", "start")
    rows: list[JsonObject] = []
    for line in lines:
        for culture in scopes:
            after, before = pick(line, done, culture), pick(line, ("start",), culture) if study.train else []
            rows += _mean_row(Cell(measure, "mean", line, culture), table(after))
            rows += _difference_row(Cell(measure, "gain", line, culture), after, before)
        if study.train and pick(line, ("start",)):
            for culture, category in itertools.product(cultures, categories):
                after, before = pick(line, done, culture, category), pick(line, ("start",), culture, category)
                gains = _difference_row(Cell(measure, "by category", line, culture, category), after, before)
                rows += [row | {"start": float(np.mean([each.value for each in before]))} for row in gains]
    for line in lines:
        base = study.baseline or "", line[1]
        for culture in scopes if base in lines and base != line else ():
            cell = Cell(measure, f"from {study.baseline}", line, culture)
            rows += _difference_row(cell, pick(line, done, culture), pick(base, done, culture))
    curves = _curves(study.x, lines) if study.x is not None else []
    for culture, curve in itertools.product(scopes, curves):
        rows += _share_rows(measure, curve, culture, pick)
    return rows


def _line(observation: Observation) -> Line:
    return observation.arm, tuple((key, as_text(value)) for key, value in observation.point.items())


def _mean_row(cell: Cell, values: Table | None) -> list[JsonObject]:
    if values is None:
        return []
    interval = crossed_interval(values.values)
    row = cell.row(interval.mean, interval.low, interval.high)
    return [row | {"seeds": values.seeds, "questions": len(values.questions)}]


def _difference_row(cell: Cell, after: Sequence[Observation], before: Sequence[Observation]) -> list[JsonObject]:
    """Returns the mean difference, paired over the questions and seeds that both have; [] if there are none."""
    of_seed = {(each.seed, each.question): each.value for each in before}
    without_seed = {each.question: each.value for each in before if each.seed is None}
    differences = []
    for each in after:
        base = of_seed.get((each.seed, each.question), without_seed.get(each.question))
        if base is not None:
            differences.append(dataclasses.replace(each, value=each.value - base))
    return _mean_row(cell, table(differences))


def _curves(x: str, lines: Sequence[Line]) -> list[list[Line]]:
    """Returns the lines that differ only in the grid's key `x`, each list in the order of x."""
    curves: dict[Line, list[Line]] = {}
    for arm, point in lines:
        if x in dict(point):
            curves.setdefault((arm, tuple(pair for pair in point if pair[0] != x)), []).append((arm, point))
    return [sorted(curve, key=lambda line: float(dict(line[1])[x])) for curve in curves.values()]


def _share_rows(measure: str, curve: Sequence[Line], culture: str, pick: Pick) -> list[JsonObject]:
    """Returns for each line of a curve: gain / gain at the largest x, and gain / start."""
    full, start = table(pick(curve[-1], ("end",), culture, ALL)), table(pick(curve[-1], ("start",), culture, ALL))
    if full is None or start is None:
        return []
    full_gain = float(full.values.mean() - start.values.mean())
    rows = []
    for line in curve:
        end = table(pick(line, ("end",), culture, ALL))
        if end is None:
            continue
        gain = float(end.values.mean() - start.values.mean())
        low = high = None
        if full.values.shape == end.values.shape == start.values.shape and full.questions == end.questions:
            low, high = _share_interval(end.values - start.values, full.values - start.values)
        row = Cell(measure, SHARE, line, culture).row(gain / full_gain if full_gain else None, low, high)
        rows.append(row | {"relative": gain / float(start.values.mean()) if start.values.mean() else None})
    return rows


def _share_interval(
    gains: Float[np.ndarray, "s q"], full_gains: Float[np.ndarray, "s q"]
) -> tuple[float | None, float | None]:
    """Returns bootstrap percentiles of the ratio; the same seeds and questions are drawn for both gains."""
    rng = np.random.default_rng(0)
    seeds, questions = gains.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=2000) / seeds
    columns = rng.multinomial(questions, np.full(questions, 1 / questions), size=2000) / questions
    gain, full_gain = (np.einsum("bs,sq,bq->b", rows, x, columns, optimize=True) for x in (gains, full_gains))
    if np.any(full_gain == 0) or np.any(np.sign(full_gain) != np.sign(full_gain[0])):
        return None, None  # the full gain may be zero, and then its share is not defined
    low, high = np.quantile(gain / full_gain, [0.025, 0.975])
    return float(low), float(high)


def language_gaps(observations: Sequence[Observation]) -> list[JsonObject]:
    """Returns native minus English for every measure in both languages, by line, culture and category."""
    rows: list[JsonObject] = []
    measures = {each.measure for each in observations}
    for measure in sorted(name for name in measures if f"{name} (english)" in measures):
        native = [(_line(each), each) for each in observations if each.measure == measure]
        english = [(_line(each), each) for each in observations if each.measure == f"{measure} (english)"]
        trained = any(each.when == "end" for _, each in native)
        groups = {(line, o.when, o.culture, category) for line, o in native for category in (o.category, ALL)}
        for line, when, culture, category in sorted(groups, key=str):
            if when == "start" and trained:
                continue
            scope = line, when, culture
            in_native, in_english = (
                [o for its_line, o in side if (its_line, o.when, o.culture) == scope and category in (ALL, o.category)]
                for side in (native, english)
            )
            cell = Cell(measure, "native minus english", line, culture, category)
            rows += _difference_row(cell, in_native, in_english)
    return rows


# --- Markdown --------------------------------------------------------------------------------------------------------


def _measure_text(measure: str, rows: Sequence[JsonObject], scopes: Sequence[str]) -> list[str]:
    text = [f"## {measure}", ""]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        if kind == "by category":
            head = ["arm", "point", "culture", "category", "start", "gain"]
            body = [
                [row["arm"], _point(row), row["culture"], row["category"], f"{row['start']:.3f}", _value(row, True)]
                for row in of_kind
            ]
        else:
            head = ["arm", "point", *scopes, *(["seeds", "questions"] if kind == "mean" else [])]
            head += ["relative"] if kind == SHARE else []
            body = []
            for arm, point in dict.fromkeys((row["arm"], _point(row)) for row in of_kind):
                by_culture = {row["culture"]: row for row in of_kind if (row["arm"], _point(row)) == (arm, point)}
                cells = [arm, point, *(_value(by_culture.get(scope), kind != "mean") for scope in scopes)]
                overall = by_culture.get(ALL) or next(iter(by_culture.values()))
                cells += [str(overall["seeds"]), str(overall["questions"])] if kind == "mean" else []
                if kind == SHARE:
                    cells.append("-" if overall["relative"] is None else f"{overall['relative']:+.3f}")
                body.append(cells)
        text += [f"### {kind}", "", *markdown_table(head, body)]
    if measure == LOGPS:
        text += ["By log-probability per token, which has a meaning before training too.", ""]
    return text


def _gap_text(rows: Sequence[JsonObject]) -> list[str]:
    head = ["arm", "point", "culture", "category", "difference"]
    body = [[row["arm"], _point(row), row["culture"], row["category"], _value(row, True)] for row in rows]
    return ["## Native minus English", "", *markdown_table(head, body)] if rows else []


def _point(row: JsonObject) -> str:
    return ", ".join(f"{last_part(key)}={value}" for key, value in row["point"].items()) or "-"


def _value(row: JsonObject | None, sign: bool = False) -> str:
    """Returns a value with its interval; with `sign`, positive numbers get a +."""
    if row is None or row["value"] is None:
        return "-"
    form = "+.3f" if sign else ".3f"
    interval = "" if row["low"] is None else f" [{row['low']:{form}}, {row['high']:{form}}]"
    return f"{row['value']:{form}}{interval}"
