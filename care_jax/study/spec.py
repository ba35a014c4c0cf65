"""The YAML file of a study, and its runs and systems."""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import yaml
from pydantic import Field, Tag, ValidationError, model_validator

from care_jax import config as configs
from care_jax.config import Config, blocks, files
from care_jax.config.types import (
    Block,
    Boolean,
    Count,
    Integer,
    InvalidValue,
    Text,
    error_message,
    tag_lists,
    tag_texts,
)
from care_jax.errors import UserError, nearest
from care_jax.evaluation import tasks
from care_jax.evaluation.items import Options
from care_jax.textfiles import JsonObject


class JudgeConfig(Block):
    """model: a name at base_url, or a checkpoint on this machine. criteria, rubrics: as in care-jax judge."""

    model: Text
    base_url: Text | None = None
    rubrics: Text | None = None
    criteria: Literal["by_content", "as_published"] = "by_content"


class StudyTask(blocks.TaskConfig):
    """A task that every system answers. n: answers per question. judge: `files` pauses until its answers are there."""

    n: Count = 1
    judge: (
        Annotated[
            Annotated[Literal["files"], Tag("<files>")] | Annotated[JudgeConfig, Tag("<judge>")],
            tag_texts("<files>", "<judge>"),
        ]
        | None
    ) = None


class AnswersConfig(Block):
    """A file of existing answers. best_of: the file holds search snippets, and the best k of each question count."""

    path: Text
    best_of: Count | None = None
    engine: Text | None = None
    language: Text | None = None


class Study(Block):
    """A study.

    base: a recipe, or a list of a recipe, machines and key=value. arms: name -> keys that change together.
    train: if false, only the starting models of the arms are evaluated. start: evaluate them as well.
    x: the key of the grid that curves are drawn over. baseline: the arm that the others are compared with.
    """

    name: Text = "study"
    output_dir: Text
    base: Annotated[
        Annotated[Text, Tag("<one>")] | Annotated[tuple[Text, ...], Field(min_length=1), Tag("<several>")],
        tag_lists("<several>", "<one>"),
    ]
    arms: Annotated[dict[str, JsonObject], Field(min_length=1)] = {"base": {}}  # noqa: RUF012  # pydantic copies it
    grid: dict[str, tuple[object, ...]] = Field(default_factory=dict)
    seeds: Annotated[tuple[Annotated[Integer, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    evaluate: tuple[StudyTask, ...] = ()
    responses: dict[str, AnswersConfig] = Field(default_factory=dict)
    train: Boolean = True
    start: Boolean = False
    baseline: Text | None = None
    x: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _add_output_dir(cls, values: object) -> object:
        """By default the output directory is named after the study."""
        if isinstance(values, Mapping) and values.get("output_dir") is None:
            return {**values, "output_dir": f"runs/studies/{values.get('name', 'study')}"}
        return values

    @model_validator(mode="after")
    def _check_across_keys(self) -> "Study":
        for name in (*self.arms, *self.responses):
            if not re.fullmatch(r"[\w.+ -]+", name):
                raise InvalidValue("arms", f"found the name {name!r}, expected letters, digits, and _ . + -")
        for key, values in self.grid.items():
            if not values:
                raise InvalidValue(f"grid.{key}", "found an empty list, expected values")
        if self.baseline is not None and self.baseline not in self.arms:
            close = nearest(self.baseline, list(self.arms))
            raise InvalidValue("baseline", f"found {self.baseline!r}{close}, expected an arm")
        if self.x is not None and self.x not in self.grid:
            raise InvalidValue("x", f"found {self.x!r}{nearest(self.x, list(self.grid))}, expected a key of the grid")
        labels = [task.label for task in self.evaluate]
        if len(set(labels)) < len(labels):
            raise InvalidValue("evaluate", "two entries have the same name: give each a `name`")
        if not self.train and not self.evaluate:
            raise InvalidValue("evaluate", "found nothing, but train is false: there is nothing to do")
        if self.responses and not self.evaluate:
            raise InvalidValue("evaluate", "found nothing, but there are responses: name the task that they answer")
        return self


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One run of a study. point: value by key of the grid. folder: the run directory."""

    name: str
    arm: str
    point: Mapping[str, object]
    seed: int
    config: Config
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class System:
    """Something that answers tasks: a run's export, a starting model, or a file. Either model or answers is set.

    when: after training (end), before it (start), or existing answers (given). seed: None if nothing was trained.
    """

    name: str
    arm: str
    point: Mapping[str, object]
    seed: int | None
    when: Literal["end", "start", "given"]
    model: str | None = None
    answers: AnswersConfig | None = None


def load_study(path: str | os.PathLike[str]) -> Study:
    """Reads a study from a YAML file, or by its name in configs/studies. Raises UserError if it is not valid."""
    values = files.read(path, "study")
    values.setdefault("name", pathlib.Path(path).stem)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{os.fspath(path)}: {error_message(error, Study)}") from None


def planned_runs(study: Study) -> list[StudyRun]:
    """Returns one run per arm, grid point and seed. Raises UserError if a configuration is not valid."""
    first, *rest = (study.base,) if isinstance(study.base, str) else study.base
    machines = [word for word in rest if "=" not in word]
    base = configs.load(first, *machines, overrides=[word for word in rest if "=" in word])
    runs = []
    for arm, changes in study.arms.items():
        for values in itertools.product(*study.grid.values()):
            point = dict(zip(study.grid, values))
            for seed in study.seeds:
                parts = [f"{last_part(key)}={_as_name(value)}" for key, value in {**point, "seed": seed}.items()]
                name = "_".join([_as_name(arm), *parts])
                folder = pathlib.Path(study.output_dir) / "runs" / name
                try:
                    config = Config.from_any(base, **{**changes, **point, "seed": seed, "output_dir": str(folder)})
                except UserError as error:
                    raise UserError(f"{study.name}, arm {arm}, {point or 'no grid'}: {error}") from None
                runs.append(StudyRun(name, arm, point, seed, config.model_copy(update={"name": name}), folder))
    names = [run.name for run in runs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{study.name}: two runs have the name {repeated!r}: two arms or values are too similar")
    return runs


def last_part(key: str) -> str:
    """Returns a dotted key's last part, which names it in tables and folders."""
    return key.rsplit(".", 1)[-1]


def as_text(value: object) -> str:
    """Returns a grid value as text: text as it is, everything else as inline YAML."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _as_name(value: object) -> str:
    """Returns a value as part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", as_text(value).strip()).strip("-")[:60] or "none"


def list_systems(study: Study, runs: Sequence[StudyRun]) -> list[System]:
    """Returns the systems that answer the tasks: exports of the runs, their distinct starting models, files."""
    trained = runs if study.train else ()
    systems = [System(run.name, run.arm, run.point, run.seed, "end", model=str(run.folder)) for run in trained]
    starts: dict[str, System] = {}
    for run in runs if study.start or not study.train else ():
        path = run.config.model.path
        if run.config.model.init != "random":
            starts.setdefault(path, System(_starting_name(run), run.arm, run.point, None, "start", model=path))
    given = [System(_as_name(arm), arm, {}, None, "given", answers=file) for arm, file in study.responses.items()]
    return [*systems, *starts.values(), *given]


def starting_systems(runs: Sequence[StudyRun]) -> dict[str, str]:
    """Returns the name of the system that each run started from; runs with random weights have none."""
    return {run.name: _starting_name(run) for run in runs if run.config.model.init == "pretrained"}


def _starting_name(run: StudyRun) -> str:
    return f"start_{_as_name(pathlib.PurePath(run.config.model.path).name)}"


def evaluation_folder(folder: pathlib.Path, system: System, task: StudyTask) -> pathlib.Path:
    """Returns the --out of care-jax evaluate for a system's answers to a task."""
    return folder / "evaluations" / system.name / task.label.replace("/", "_")


def answers_folder(folder: pathlib.Path, system: System, task: StudyTask) -> pathlib.Path:
    """Returns the folder that care-jax evaluate makes in `evaluation_folder`, named after the task."""
    return evaluation_folder(folder, system, task) / tasks.find(task.task, Options())[0].name
