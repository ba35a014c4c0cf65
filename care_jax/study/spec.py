"""What a study is made of: its YAML, and the runs and systems that follow from it."""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, Tag, ValidationError, model_validator

from care_jax import config as configs
from care_jax.config import Config, blocks, files
from care_jax.config.types import Block, Count, Integer, InvalidValue, Switch, Text, error_message, tag_lists, tag_texts
from care_jax.errors import UserError, nearest
from care_jax.evaluation.items import Options
from care_jax.evaluation.tasks import registry


class JudgeConfig(Block):
    """model: a name at base_url, or a checkpoint here. criteria, rubrics: as of care-jax judge."""

    model: Text
    base_url: Text | None = None
    rubrics: Text | None = None
    criteria: Literal["by_content", "as_published"] = "by_content"


class TaskConfig(blocks.TaskConfig):
    """A task that every system is given. n: answers to each question. judge: `files` pauses for the answers."""

    n: Count = 1
    judge: (
        Annotated[
            Annotated[Literal["files"], Tag("<files>")] | Annotated[JudgeConfig, Tag("<judge>")],
            tag_texts("<files>", "<judge>"),
        ]
        | None
    ) = None


class AnswersConfig(Block):
    """Answers that are there already. best_of: the file holds search snippets, of which the best k count."""

    path: Text
    best_of: Count | None = None
    engine: Text | None = None
    language: Text | None = None


class Study(Block):
    """base: a recipe, or a list of it, machines and key=value. arms: name -> keys that change together. train: false
    evaluates the arms' starting models only; start: these too. x: the grid's key that curves are drawn over.
    baseline: the arm that others are compared with."""

    name: Text = "study"
    output_dir: Text
    base: Annotated[
        Annotated[Text, Tag("<one>")] | Annotated[tuple[Text, ...], Field(min_length=1), Tag("<several>")],
        tag_lists("<several>", "<one>"),
    ]
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = {"base": {}}  # noqa: RUF012  # pydantic copies it
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    seeds: Annotated[tuple[Annotated[Integer, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    evaluate: tuple[TaskConfig, ...] = ()
    responses: dict[str, AnswersConfig] = Field(default_factory=dict)
    train: Switch = True
    start: Switch = False
    baseline: Text | None = None
    x: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _folder(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("output_dir") is None:
            return {**given, "output_dir": f"runs/studies/{given.get('name', 'study')}"}
        return given

    @model_validator(mode="after")
    def _fits_together(self):
        for name in (*self.arms, *self.responses):
            if not re.fullmatch(r"[\w.+ -]+", name):
                raise InvalidValue("arms", f"found the name {name!r}, expected letters, digits, and _ . + -")
        for key, values in self.grid.items():
            if not values:
                raise InvalidValue(f"grid.{key}", "found an empty list, expected values")
        if self.baseline is not None and self.baseline not in self.arms:
            raise InvalidValue(
                "baseline", f"found {self.baseline!r}{nearest(self.baseline, list(self.arms))}, expected an arm"
            )
        if self.x is not None and self.x not in self.grid:
            raise InvalidValue("x", f"found {self.x!r}{nearest(self.x, list(self.grid))}, expected a key of the grid")
        labels = [one.label for one in self.evaluate]
        if len(set(labels)) < len(labels):
            raise InvalidValue("evaluate", "two entries go by one name: give them a `name` each")
        if not self.train and not self.evaluate:
            raise InvalidValue("evaluate", "found nothing, but train is false: nothing would be done")
        if self.responses and not self.evaluate:
            raise InvalidValue("evaluate", "found nothing, but there are responses: say which task they answer")
        return self


@dataclasses.dataclass(frozen=True)
class RunOf:
    """One run of a study. point: the grid's keys and values; folder: its run directory."""

    name: str
    arm: str
    point: Mapping[str, Any]
    seed: int
    config: Config
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class System:
    """Whoever answers tasks: a run's export, a starting model, or a file. model or answers is set."""

    name: str
    arm: str
    point: Mapping[str, Any]
    seed: int | None
    when: Literal["end", "start", "given"]
    model: str | None = None
    answers: AnswersConfig | None = None


def load_study(path: str | os.PathLike[str]) -> Study:
    """The study in a YAML file, or of a name in configs/studies. Its relative recipe names are the shipped ones."""
    place = _find(path)
    try:
        values = files.parse(place.read_bytes().decode("utf-8-sig"), str(place))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{place}: a study is a mapping of base, arms, grid, seeds, evaluate")
    values.setdefault("name", place.stem)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{place}: {error_message(error, Study)}") from None


def shipped() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in (files.shipped_folder() / "studies").glob("*.yaml"))


def _find(path: str | os.PathLike[str]) -> pathlib.Path:
    text = os.fspath(path)
    if text in shipped():
        return files.shipped_folder() / "studies" / f"{text}.yaml"
    place = pathlib.Path(text).expanduser()
    if not place.is_file():
        names = shipped()
        raise UserError(
            f"study {text!r}: no such file, and no study of that name{nearest(text, names)}; there are "
            f"{', '.join(names)}"
        )
    return place


def runs(study: Study) -> list[RunOf]:
    """Every arm x grid point x seed, each with its whole configuration. Every mistake in any of them is said here."""
    first, *rest = (study.base,) if isinstance(study.base, str) else study.base
    machines = [one for one in rest if "=" not in one]
    base = configs.load(first, *machines, overrides=[one for one in rest if "=" in one])
    found = []
    for arm, own in study.arms.items():
        for values in itertools.product(*study.grid.values()):
            point = dict(zip(study.grid, values))
            for seed in study.seeds:
                name = "_".join([_safe(arm), *(f"{_short(key)}={_safe(value)}" for key, value in point.items())])
                name += f"_seed={seed}"
                folder = pathlib.Path(study.output_dir) / "runs" / name
                try:
                    config = Config.from_any(base, **{**own, **point, "seed": seed, "output_dir": str(folder)})
                except UserError as error:
                    raise UserError(f"{study.name}, arm {arm}, {point or 'no grid'}: {error}") from None
                config = config.model_copy(update={"name": name})
                found.append(RunOf(name, arm, point, seed, config, folder))
    twice = [one.name for one in found if sum(other.name == one.name for other in found) > 1]
    if twice:
        raise UserError(f"{study.name}: two runs go by the name {twice[0]!r}: arms or values are too much alike")
    return found


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _safe(value: Any) -> str:
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n")
    return re.sub(r"[^\w.+-]+", "-", text.strip()).strip("-")[:60] or "none"


def systems(study: Study, planned: list[RunOf]) -> list[System]:
    """Who answers the tasks: the runs' exports, their distinct starting models, the files."""
    found = []
    if study.train:
        found = [System(one.name, one.arm, one.point, one.seed, "end", model=str(one.folder)) for one in planned]
    if study.start or not study.train:
        seen = set()
        for one in planned:
            path = one.config.model.path
            if one.config.model.init == "random" or path in seen:
                continue
            seen.add(path)
            name = f"start_{_safe(pathlib.PurePath(path).name)}"
            found.append(System(name, one.arm, one.point, None, "start", model=path))
    for name, given in study.responses.items():
        found.append(System(_safe(name), name, {}, None, "given", answers=given))
    return found


def start_of(study: Study, planned: Sequence[RunOf]) -> dict[str, str]:
    """Run -> the name of the system that it started as."""
    return {
        one.name: f"start_{_safe(pathlib.PurePath(one.config.model.path).name)}"
        for one in planned
        if one.config.model.init == "pretrained"
    }


def place_of(folder: pathlib.Path, system: System, task: TaskConfig) -> pathlib.Path:
    """Where a system's answers to a task lie."""
    return folder / "evaluations" / system.name / task.label.replace("/", "_")


def task_folder(task: TaskConfig) -> str:
    """The folder that care-jax evaluate makes of a task's name."""
    return registry.find(task.task, Options())[0].name
