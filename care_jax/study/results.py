"""What a study measured: one observation a question, system and measure, out of run directories and rated answers."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Float

from care_jax.evaluation.report import records
from care_jax.study.spec import RunOf, Study, System, TaskConfig, place_of, start_of, task_folder

REWARDS, LOGPS = "preference accuracy", "preference accuracy by logps"


@dataclasses.dataclass(frozen=True, slots=True)
class Observation:
    """when: start (before training), end, or given (answers of others). seed: None where no run was trained."""

    system: str
    arm: str
    point: Mapping[str, Any]
    seed: int | None
    when: Literal["start", "end", "given"]
    measure: str
    culture: str
    category: str
    question: str
    value: float


def gather(study: Study, planned: Sequence[RunOf], who: Sequence[System], folder: pathlib.Path) -> list[Observation]:
    """All observations: held-out preferences of every run, scores and ratings of every system and task."""
    found: list[Observation] = []
    if study.train:
        for one in planned:
            found += _held_out(one)
    for task in study.evaluate:
        own = {system.name: list(_rated(folder, task, system)) for system in who}
        for system in who:
            if not study.train or system.when != "start":
                found += own[system.name]
        # A starting model stands for the start of every run that began as it.
        for one in planned if study.train else ():
            start = start_of(study, planned).get(one.name)
            for before in own.get(start or "", ()):
                found.append(dataclasses.replace(before, arm=one.arm, point=one.point, seed=one.seed, when="start"))
    return found


def _held_out(one: RunOf) -> Iterator[Observation]:
    path = one.folder / "held_out.jsonl"
    if not path.is_file():
        return
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    last = max((line["step"] for line in lines), default=0)
    for line in lines:
        if line["step"] not in (0, last):
            continue
        when: Literal["start", "end"] = "end" if line["step"] == last else "start"
        for measure, key in ((REWARDS, "rewards/accuracies"), (LOGPS, "logps/accuracies")):
            if line.get(key) is not None:
                yield Observation(
                    one.name, one.arm, one.point, one.seed, when, measure, line["culture"] or "all",
                    line["category"] or "all", line["question"], float(line[key]),
                )  # fmt: skip


def _rated(folder: pathlib.Path, task: TaskConfig, system: System) -> Iterator[Observation]:
    place = place_of(folder, system, task) / task_folder(task)
    file = next(
        (place / name for name in ("best.jsonl", "rated.jsonl", "scores.jsonl") if (place / name).is_file()), None
    )
    if file is None:
        return
    values: dict[str, list[float]] = {}
    about: dict[str, records.Record] = {}
    for record in records.load_records([str(file)]):
        item = record.id or record.item  # the id is the same whatever language the question is asked in
        about.setdefault(item, record)
        if record.value is not None:
            values.setdefault(item, []).append(record.value)
    for item, own in values.items():
        yield Observation(
            system.name, system.arm, system.point, system.seed, system.when, task.label, about[item].culture,
            about[item].category, item, sum(own) / len(own),
        )  # fmt: skip


def write_parquet(found: Sequence[Observation], path: pathlib.Path) -> None:
    """results.parquet: a row an observation, the grid's keys as columns (numbers where all of one key are)."""
    import pyarrow
    from pyarrow import parquet

    keys = list(dict.fromkeys(key for one in found for key in one.point))
    names = ("system", "arm", "seed", "when", "measure", "culture", "category", "question", "value")
    columns: dict[str, list[Any]] = {name: [getattr(one, name) for one in found] for name in names}
    for key in keys:
        given = [one.point.get(key) for one in found]
        numbers = all(
            value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in given
        )
        columns[key] = [None if v is None else float(v) if numbers else point_text(v) for v in given]
    aside = path.with_suffix(".parquet.part")
    parquet.write_table(pyarrow.table(columns), aside)
    aside.rename(path)


def point_text(value: Any) -> str:
    """A grid value as the tables show it."""
    return (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    )


@dataclasses.dataclass(frozen=True)
class Table:
    """Values of one arm and point: a row a seed where every seed has every question, else one row of means."""

    seeds: int  # that the values are of
    questions: tuple[str, ...]
    values: Float[np.ndarray, "rows q"]


def table(found: Sequence[Observation]) -> Table | None:
    """The observations as seeds x questions; where seeds held out different questions, each question's mean alone."""
    if not found:
        return None
    seeds = sorted({one.seed for one in found}, key=lambda seed: -1 if seed is None else seed)
    cells: dict[tuple[int | None, str], float] = {(one.seed, one.question): one.value for one in found}
    questions = sorted({one.question for one in found})
    complete = all((seed, question) in cells for seed in seeds for question in questions)
    if complete:
        values = np.asarray([[cells[seed, question] for question in questions] for seed in seeds])
        return Table(len(seeds), tuple(questions), values)
    rows = {question: [cells[s, question] for s in seeds if (s, question) in cells] for question in questions}
    return Table(len(seeds), tuple(questions), np.asarray([[float(np.mean(own)) for own in rows.values()]]))
