"""A study's table and pictures: means over seeds and questions with intervals, gains, shares of the full gain, gaps."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from care_jax.evaluation.statistics import Interval, crossed
from care_jax.study.results import LOGPS, Observation, point_text, table
from care_jax.study.spec import Study
from care_jax.textfiles import markdown_table, write_whole

ALL = "all"
Key = tuple[str, tuple[tuple[str, str], ...]]  # arm, point


def write(study: Study, found: Sequence[Observation], folder: pathlib.Path) -> list[pathlib.Path]:
    """report.md, report.json and the pictures of every measure; returns the files."""
    from care_jax.study import pictures

    text, rows = [f"# {study.name}", ""], []
    files = [folder / "report.md", folder / "report.json"]
    measures = list(dict.fromkeys(one.measure for one in found))
    for measure in measures:
        own = [one for one in found if one.measure == measure]
        made, shown = _measure(study, measure, own)
        rows += made
        text += shown
        if study.x is not None:
            files.append(pictures.curves(study, measure, made, folder))
        scattered = [row for row in made if row["kind"] == "by category"]
        if scattered:
            files.append(pictures.scatter(measure, scattered, folder))
        else:
            files += pictures.bars(measure, made, folder) if study.x is None else []
    made, shown = _language_gaps(found)
    rows += made
    text += shown
    text += [
        "- Means are over questions and seeds; intervals: 95 % bootstrap over both, drawn independently; where seeds "
        "held out different questions, over the questions alone.",
        "- gain: from the model that the run started as, paired by question.",
        "- share of the full gain: gain at this value / gain at the largest; relative: gain / start.",
    ]
    write_whole(folder / "report.md", "\n".join(text) + "\n")
    write_whole(folder / "report.json", json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return files


def _key(one: Observation) -> Key:
    return one.arm, tuple((key, point_text(value)) for key, value in one.point.items())


def _measure(study: Study, measure: str, found: Sequence[Observation]) -> tuple[list[dict[str, Any]], list[str]]:
    cultures = sorted({one.culture for one in found})
    scopes = [*cultures, ALL] if cultures != [ALL] else [ALL]
    rows: list[dict[str, Any]] = []
    by_key: dict[Key, list[Observation]] = {}
    for one in found:
        by_key.setdefault(_key(one), []).append(one)
    keys = [key for key, own in by_key.items() if not study.train or any(one.when != "start" for one in own)]

    def pick(key: Key, when: tuple[str, ...], culture: str, category: str | None = None) -> list[Observation]:
        return [
            one for one in by_key.get(key, ())
            if one.when in when and culture in (ALL, one.culture)
            and category in (None, one.category)
        ]  # fmt: skip

    done = ("end", "given") if study.train else ("end", "given", "start")
    for key in keys:
        for culture in scopes:
            after, before = pick(key, done, culture), pick(key, ("start",), culture) if study.train else []
            rows += _row(measure, "mean", key, culture, ALL, table(after))
            rows += _gain(measure, "gain", key, culture, ALL, after, before)
        if study.train and pick(key, ("start",), ALL):
            for culture in cultures:
                for category in sorted({one.category for one in found}):
                    after, before = pick(key, done, culture, category), pick(key, ("start",), culture, category)
                    own = _gain(measure, "by category", key, culture, category, after, before)
                    rows += [row | {"start": float(np.mean([one.value for one in before]))} for row in own]
    if study.baseline is not None:
        for key in keys:
            base: Key = (study.baseline, key[1])
            if key[0] != study.baseline and base in keys:
                for culture in scopes:
                    rows += _gain(
                        measure, f"from {study.baseline}", key, culture, ALL, pick(key, done, culture),
                        pick(base, done, culture),
                    )  # fmt: skip
    if study.x is not None:
        for culture in scopes:
            rows += _shares(study, measure, keys, culture, functools.partial(pick, culture=culture))
    return rows, _markdown(study, measure, rows, scopes)


def _base_row(measure: str, kind: str, key: Key, culture: str, category: str, around: Interval) -> dict[str, Any]:
    return {
        "measure": measure, "kind": kind, "arm": key[0], "point": dict(key[1]), "culture": culture,
        "category": category, "value": around.mean, "low": around.low, "high": around.high,
    }  # fmt: skip


def _row(measure: str, kind: str, key: Key, culture: str, category: str, own: Any) -> list[dict[str, Any]]:
    if own is None:
        return []
    row = _base_row(measure, kind, key, culture, category, crossed(own.values))
    return [row | {"seeds": own.seeds, "questions": len(own.questions)}]


def _gain(
    measure: str, kind: str, key: Key, culture: str, category: str,
    after: Sequence[Observation], before: Sequence[Observation],
) -> list[dict[str, Any]]:  # fmt: skip
    """The paired difference over the questions (and seeds) that both have."""
    held = {(one.seed, one.question): one.value for one in before}
    loose = {one.question: one.value for one in before if one.seed is None}
    differences = []
    for one in after:
        base = held.get((one.seed, one.question), loose.get(one.question))
        if base is not None:
            differences.append((one, one.value - base))
    if not differences:
        return []
    own = table([_with(one, value) for one, value in differences])
    return _row(measure, kind, key, culture, category, own)


def _with(one: Observation, value: float) -> Observation:
    return dataclasses.replace(one, value=value)


def _shares(
    study: Study, measure: str, keys: Sequence[Key], culture: str,
    pick: Callable[[Key, tuple[str, ...]], list[Observation]],
) -> list[dict[str, Any]]:  # fmt: skip
    """For each line of the curve: gain / gain at the largest x, and gain / start."""
    rows = []
    for line in lines_of(study, keys):
        full_key = max(line, key=lambda key: _x(study, key))
        full, start = table(pick(full_key, ("end",))), table(pick(full_key, ("start",)))
        if full is None or start is None:
            continue
        whole = float(full.values.mean() - start.values.mean())
        for key in line:
            own = table(pick(key, ("end",)))
            if own is None:
                continue
            gain = float(own.values.mean() - start.values.mean())
            row = {
                "measure": measure, "kind": "share of the full gain", "arm": key[0], "point": dict(key[1]),
                "culture": culture, "category": ALL, "value": gain / whole if whole else None, "low": None,
                "high": None, "relative": gain / float(start.values.mean()) if start.values.mean() else None,
            }  # fmt: skip
            if full.values.shape == own.values.shape == start.values.shape and full.questions == own.questions:
                row |= _share_interval(own.values, full.values, start.values)
            rows.append(row)
    return rows


def _share_interval(own: Any, full: Any, start: Any) -> dict[str, float | None]:
    """Percentiles of the ratio; seeds and questions are drawn once for both of its sides."""
    rng = np.random.default_rng(0)
    seeds, questions = own.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=2000) / seeds
    columns = rng.multinomial(questions, np.full(questions, 1 / questions), size=2000) / questions
    gain, whole = (np.einsum("bs,sq,bq->b", rows, x - start, columns, optimize=True) for x in (own, full))
    if np.any(whole == 0) or np.any(np.sign(whole) != np.sign(whole[0])):
        return {"low": None, "high": None}  # the full gain may be none: a share of it means nothing
    low, high = np.quantile(gain / whole, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def lines_of(study: Study, keys: Sequence[Key]) -> list[list[Key]]:
    """Keys that differ in x alone, each list in the order of x."""
    lines: dict[tuple[str, tuple[tuple[str, str], ...]], list[Key]] = {}
    for key in keys:
        rest = tuple(pair for pair in key[1] if pair[0] != study.x)
        if any(name == study.x for name, _ in key[1]):
            lines.setdefault((key[0], rest), []).append(key)
    return [sorted(line, key=lambda key: _x(study, key)) for line in lines.values()]


def _x(study: Study, key: Key) -> float:
    return float(dict(key[1])[study.x or ""])


def _language_gaps(found: Sequence[Observation]) -> tuple[list[dict[str, Any]], list[str]]:
    """Native minus English, wherever one measure was taken in both, by system, culture and category."""
    rows: list[dict[str, Any]] = []
    measures = {one.measure for one in found}
    for measure in sorted(name for name in measures if f"{name} (english)" in measures):
        native = [(_key(one), one) for one in found if one.measure == measure]
        english = [(_key(one), one) for one in found if one.measure == f"{measure} (english)"]
        places = {(key, o.when, o.culture, category) for key, o in native for category in (o.category, ALL)}
        for key, when, culture, category in sorted(places, key=str):
            if when == "start" and any(one.when == "end" for _, one in native):
                continue
            own, other = (
                [o for k, o in side if (k, o.when, o.culture) == (key, when, culture) and category in (ALL, o.category)]
                for side in (native, english)
            )
            rows += _gain(measure, "native minus english", key, culture, category, own, other)
    text = []
    if rows:
        text = ["## Native minus English", "", *markdown_table(["arm", "point", "culture", "category", "difference"], [
            [row["arm"], _point(row), row["culture"], row["category"], _shown(row, True)] for row in rows
        ])]  # fmt: skip
    return rows, text


# --- markdown --------------------------------------------------------------------------------------------------------


def _markdown(study: Study, measure: str, rows: Sequence[dict[str, Any]], scopes: Sequence[str]) -> list[str]:
    text = [f"## {measure}", ""]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind]
        if kind == "by category":
            head = ["arm", "point", "culture", "category", "start", "gain"]
            body = [
                [row["arm"], _point(row), row["culture"], row["category"], f"{row['start']:.3f}", _shown(row, True)]
                for row in own
            ]
        else:
            head = ["arm", "point", *scopes, *(["seeds", "questions"] if kind == "mean" else [])]
            head += ["relative"] if kind == "share of the full gain" else []
            body = []
            for arm, point in dict.fromkeys((row["arm"], _point(row)) for row in own):
                mine = {row["culture"]: row for row in own if (row["arm"], _point(row)) == (arm, point)}
                line = [arm, point, *(_shown(mine.get(scope), kind not in ("mean",)) for scope in scopes)]
                whole = mine.get(ALL) or next(iter(mine.values()))
                line += [str(whole["seeds"]), str(whole["questions"])] if kind == "mean" else []
                if kind == "share of the full gain":
                    line.append("-" if whole["relative"] is None else f"{whole['relative']:+.3f}")
                body.append(line)
        text += [f"### {kind}", "", *markdown_table(head, body)]
    if measure == LOGPS:
        text += ["By log-probabilities a token: it means something before training too.", ""]
    return text


def _point(row: dict[str, Any]) -> str:
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in row["point"].items()) or "-"


def _shown(row: dict[str, Any] | None, sign: bool = False) -> str:
    if row is None or row["value"] is None:
        return "-"
    form = "+.3f" if sign else ".3f"
    around = "" if row["low"] is None else f" [{row['low']:{form}}, {row['high']:{form}}]"
    return f"{row['value']:{form}}{around}"
