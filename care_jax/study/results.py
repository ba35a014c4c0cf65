"""A study's observations, one per question, system and measure, from run directories and rated answers."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from care_jax.evaluation.report import records
from care_jax.study.spec import Study, StudyRun, StudyTask, System, answers_folder, as_text, starting_systems
from care_jax.textfiles import read_lines

REWARDS, LOGPS = "preference accuracy", "preference accuracy by logps"


@dataclasses.dataclass(frozen=True, slots=True)
class Observation:
    """One value. when: before training (start), after it (end), or from existing answers (given).

    point: value by key of the grid. seed: None if no run was trained.
    """

    system: str
    arm: str
    point: Mapping[str, object]
    seed: int | None
    when: Literal["start", "end", "given"]
    measure: str
    culture: str
    category: str
    question: str
    value: float


def collect(
    study: Study, runs: Sequence[StudyRun], systems: Sequence[System], folder: pathlib.Path
) -> list[Observation]:
    """Returns the held-out preferences of every run, and the scores and ratings of every system and task."""
    trained = runs if study.train else ()
    observations = [each for run in trained for each in _held_out(run)]
    for task in study.evaluate:
        by_system = {system.name: list(_rated(folder, task, system)) for system in systems}
        for system in systems:
            if not study.train or system.when != "start":
                observations += by_system[system.name]
        # The score of a starting model is the score at the start of every run that began with it.
        starts = starting_systems(runs)
        for run in trained:
            for before in by_system.get(starts.get(run.name, ""), ()):
                copy = dataclasses.replace(before, arm=run.arm, point=run.point, seed=run.seed, when="start")
                observations.append(copy)
    return observations


def _held_out(run: StudyRun) -> Iterator[Observation]:
    """Yields the accuracies on held-out pairs that a run's first and last evaluation wrote."""
    lines = read_lines(run.folder / "held_out.jsonl")
    last = max((line["step"] for line in lines), default=0)
    for line in lines:
        if line["step"] not in (0, last):
            continue
        when: Literal["start", "end"] = "end" if line["step"] == last else "start"
        for measure, key in ((REWARDS, "rewards/accuracies"), (LOGPS, "logps/accuracies")):
            if line.get(key) is not None:
                yield Observation(
                    run.name, run.arm, run.point, run.seed, when, measure, line["culture"] or "all",
                    line["category"] or "all", line["question"], float(line[key]),
                )  # fmt: skip


def _rated(folder: pathlib.Path, task: StudyTask, system: System) -> Iterator[Observation]:
    """Yields the mean score or rating of each question of a task, or of its best snippet."""
    answers = answers_folder(folder, system, task)
    files = [answers / name for name in ("best.jsonl", "rated.jsonl", "scores.jsonl")]
    values: dict[str, list[float]] = {}
    first: dict[str, records.Record] = {}
    for record in records.load_records([str(file) for file in files if file.is_file()][:1]):
        question = record.id or record.item  # the id does not depend on the language of the question
        first.setdefault(question, record)
        if record.value is not None:
            values.setdefault(question, []).append(record.value)
    for question, its_values in values.items():
        yield Observation(
            system.name, system.arm, system.point, system.seed, system.when, task.label, first[question].culture,
            first[question].category, question, sum(its_values) / len(its_values),
        )  # fmt: skip


def write_parquet(observations: Sequence[Observation], path: pathlib.Path) -> None:
    """Writes one row per observation; each key of the grid is a column, numeric if all its values are numbers."""
    import pyarrow
    from pyarrow import parquet

    names = ("system", "arm", "seed", "when", "measure", "culture", "category", "question", "value")
    columns: dict[str, list[object]] = {name: [getattr(each, name) for each in observations] for name in names}
    for key in dict.fromkeys(key for each in observations for key in each.point):
        values = [each.point.get(key) for each in observations]
        numbers = [float(v) if isinstance(v, int | float) and not isinstance(v, bool) else None for v in values]
        numeric = all((number is None) == (value is None) for number, value in zip(numbers, values, strict=True))
        columns[key] = list(numbers) if numeric else [None if value is None else as_text(value) for value in values]
    aside = path.with_suffix(".parquet.part")
    parquet.write_table(pyarrow.table(columns), aside)
    aside.rename(path)


@dataclasses.dataclass(frozen=True)
class Table:
    """Values of one arm and grid point.

    seeds: number of seeds that the values come from. values: one row per seed if every seed has every question, else a
    single row with the mean of each question.
    """

    seeds: int
    questions: tuple[str, ...]
    values: Float[np.ndarray, "rows q"]


def table(observations: Sequence[Observation]) -> Table | None:
    """Returns the observations of one arm and point as a Table; None if there are none."""
    if not observations:
        return None
    seeds = sorted({each.seed for each in observations}, key=lambda seed: -1 if seed is None else seed)
    cells = {(each.seed, each.question): each.value for each in observations}
    questions = sorted({each.question for each in observations})
    if all((seed, question) in cells for seed in seeds for question in questions):
        values = np.asarray([[cells[seed, question] for question in questions] for seed in seeds])
    else:  # the seeds held out different questions
        by_question = [[cells[s, question] for s in seeds if (s, question) in cells] for question in questions]
        values = np.asarray([[float(np.mean(its_values)) for its_values in by_question]])
    return Table(len(seeds), tuple(questions), values)
