"""The whole configuration of a run: exactly the keys that something reads, each with its default.

    config = load("quickstart", "cpu", overrides=["loss.beta=0.2"])

`files` merges recipes, machine files and overrides; here the result is validated. Every mistake is a `UserError` that
names the key, the value that was found and the values that are allowed.
"""

import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import yaml
from pydantic import Field, Tag, ValidationError, model_validator

from care_jax.config import blocks, files
from care_jax.config.types import Block, Count, Integer, Interval, InvalidValue, Text, error_message, tag_lists
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject


class Config(Block):
    """The configuration of a whole run."""

    name: Text = "run"
    output_dir: Text
    seed: Annotated[Integer, Field(ge=0)] = 0
    resume: Literal["auto", "never", "must"] = "auto"
    model: blocks.ModelConfig
    data: blocks.DataConfig
    batch: blocks.BatchConfig = blocks.BatchConfig()
    loss: Annotated[
        Annotated[blocks.LossConfig, Tag("<one>")]
        | Annotated[tuple[blocks.LossConfig, ...], Field(min_length=1), Tag("<several>")],
        tag_lists("<several>", "<one>"),
    ]
    reference: blocks.ReferenceConfig = blocks.ReferenceConfig()
    optimizer: blocks.OptimizerConfig = blocks.OptimizerConfig()
    mesh: blocks.MeshConfig = blocks.MeshConfig()
    checkpoint: blocks.CheckpointConfig = blocks.CheckpointConfig()
    nonfinite: blocks.NonfiniteConfig = blocks.NonfiniteConfig()
    profile: blocks.ProfileConfig | None = None
    log_every: Count = 1
    eval_every: Interval | None = 0.1
    evaluation: blocks.EvaluationConfig | None = None
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)

    @property
    def losses(self) -> tuple[blocks.LossConfig, ...]:
        """One loss as a tuple too."""
        return self.loss if isinstance(self.loss, tuple) else (self.loss,)

    @model_validator(mode="before")
    @classmethod
    def _add_defaults(cls, values: object) -> object:
        """By default the output directory is named after the run, and the loss is DPO."""
        if not isinstance(values, Mapping):
            return values
        folder = {"output_dir": f"runs/{values.get('name', 'run')}"} if values.get("output_dir") is None else {}
        return {"loss": {}, **values, **folder}

    @model_validator(mode="after")
    def _check_across_blocks(self) -> "Config":
        if self.data.max_length > self.batch.row_length:
            raise InvalidValue(
                "data.max_length",
                f"found {self.data.max_length}, expected at most batch.row_length, "
                f"which is {self.batch.row_length}: a prompt and its completion are in one row",
            )
        from care_jax import losses  # loads jax

        specs = [losses.spec(losses.get(loss.name)) for loss in self.losses]
        views = {spec.view: loss.name for loss, spec in zip(self.losses, specs)}
        if len(views) > 1:
            mixed = ", ".join(f"{name} takes {view}" for view, name in views.items())
            raise InvalidValue("loss", f"losses of one list share a view, found {mixed}")
        if any(spec.needs_kl for spec in specs) and self.batch.examples < 2:
            raise InvalidValue(
                "batch.examples", "found 1, expected at least 2: the KL term reads the completions of another question"
            )
        if not any(loss.weight for loss in self.losses):
            raise InvalidValue("loss.weight", "found 0 for every loss, expected one above 0: nothing would be trained")
        return self

    @classmethod
    def from_any(
        cls, source: "Config | Mapping[str, object] | str | os.PathLike[str]", **overrides: object
    ) -> "Config":
        """Returns the configuration of a Config, a nested mapping, or the path or name of a recipe.

        overrides: values by dotted key, or whole blocks.
        """
        if not isinstance(source, Config | Mapping | str | os.PathLike):
            raise UserError(f"configuration: found {type(source).__name__}, expected a Config, a mapping or a path")
        values = source.model_dump() if isinstance(source, Config) else source
        values = values if isinstance(values, Mapping) else _read_recipe(values)
        return _validate(files.with_overrides(values, list(overrides.items())))


def load(recipe: str | os.PathLike[str], *machines: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Config:
    """Returns the configuration of a recipe, machines and `key=value` overrides; later ones win.

    recipe, machines: paths, or names of files in configs/ and configs/machines/.
    """
    return resolve(_read_recipe(recipe), machines, overrides)


def resolve(
    values: Mapping[str, object], machines: Iterable[str | os.PathLike[str]] = (), overrides: Iterable[str] = ()
) -> Config:
    """Validates nested values after merging machines and then `key=value` overrides into them."""
    for machine in machines:
        values = files.merge(values, files.read(machine, "machine"))
    return _validate(files.with_overrides(values, files.parse_overrides(overrides)))


def parse(text: str) -> Config:
    """Reads what `dump` wrote."""
    return _validate(files.parse(text, "configuration"))


def _validate(values: object) -> Config:
    """Returns the configuration of nested values; raises one UserError with a line for each mistake."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(error_message(error, Config)) from None


def _read_recipe(recipe: str | os.PathLike[str]) -> JsonObject:
    """Returns the values in a recipe; its file's name is the run's name if it has none."""
    values = files.read(recipe, "recipe")
    if values.get("name") is None:
        values["name"] = pathlib.Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    return values


def dump(config: Config) -> str:
    """Returns the whole configuration as YAML, from which `load` and `parse` make an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def with_template_date(config: Config, date: str | None) -> Config:
    """Returns the configuration with `data.template_date` set."""
    return config.model_copy(update={"data": config.data.model_copy(update={"template_date": date})})


def steps_of(interval: int | float, total: int) -> int:
    """Returns an interval in steps, for a run of `total` steps.

    Below 1 it is a fraction of the run, rounded up, so that any interval above 0 is at least one step; 0 is none.
    """
    if interval >= 1 or interval == 0:
        return int(interval)
    return max(1, math.ceil(interval * total - 1e-9))  # 0.1 * 30 is a little more than 3


def summary(config: Config) -> str:
    """Returns a few lines for the start of a run."""

    def loss_text(loss: blocks.LossConfig) -> str:
        hyperparameters = ", ".join(f"{key}={value}" for key, value in loss.hyperparameters.items())
        weight = f"{loss.weight:g} " if loss.weight != 1 else ""
        return weight + loss.name + (f"({hyperparameters})" if hyperparameters else "")

    model, data, batch, optimizer = config.model, config.data, config.batch, config.optimizer
    weights = [f" x{source.weight:g}" if source.weight != 1 else "" for source in data.train]
    sources = ", ".join(f"{source.reader}:{source.path}{weight}" for source, weight in zip(data.train, weights))
    lengths = {"epoch(s)": data.epochs, "steps": data.max_steps}
    length = " and ".join(f"{number} {unit}" for unit, number in lengths.items() if number is not None)
    rows = f"{batch.microbatch_rows} rows of {batch.row_length}"
    rate = f"{optimizer.learning_rate:g}, {optimizer.schedule}, warmup {optimizer.warmup:g}"
    lines = (
        f"{config.name} -> {config.output_dir}, seed {config.seed}",
        f"  model      {model.path} ({model.init}, {model.dtype}, remat {model.remat})",
        f"  data       {sources}; pairs {data.pairs.policy}, min gap {data.pairs.min_gap:g}; {length}",
        f"  batch      {batch.examples} x {batch.unit} per step; {rows} at once",
        f"  loss       {' + '.join(map(loss_text, config.losses))}",
        f"  optimizer  {optimizer.name}, {rate}",
    )
    return "\n".join(lines)
