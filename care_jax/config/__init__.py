"""The typed, frozen configuration of a run: exactly the keys that something reads, each with its default.

    config = load("quickstart", "cpu", overrides=["loss.beta=0.2"])

Recipes, machine files and overrides are laid over each other (`care_jax.config.files`), then validated here. Every
mistake is a `UserError` that names the key, what it got and what it may be.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, Tag, ValidationError, model_validator

from care_jax.config import files
from care_jax.config.blocks import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    NonfiniteConfig,
    OptimizerConfig,
    ProfileConfig,
    ReferenceConfig,
    list_or,
)
from care_jax.config.types import AtKey, Block, Count, Integer, Interval, Text, message
from care_jax.errors import UserError


class Config(Block):
    """A whole run, resolved. `losses` is the loss, or the list of them, as a tuple."""

    name: Text = "run"
    output_dir: Text
    seed: Annotated[Integer, Field(ge=0)] = 0
    resume: Literal["auto", "never", "must"] = "auto"
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    loss: Annotated[
        Annotated[LossConfig, Tag("<one>")] | Annotated[tuple[LossConfig, ...], Field(min_length=1), Tag("<several>")],
        list_or("<several>", "<one>"),
    ]
    reference: ReferenceConfig = ReferenceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    nonfinite: NonfiniteConfig = NonfiniteConfig()
    profile: ProfileConfig | None = None
    log_every: Count = 1
    eval_every: Interval | None = 0.1
    evaluation: EvaluationConfig | None = None
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)

    @property
    def losses(self) -> tuple[LossConfig, ...]:
        return self.loss if isinstance(self.loss, tuple) else (self.loss,)

    @model_validator(mode="before")
    @classmethod
    def _folder(cls, given: Any) -> Any:
        """The output directory is named after the run where it is not given; the loss is DPO."""
        if not isinstance(given, Mapping):
            return given
        folder = {"output_dir": f"runs/{given.get('name', 'run')}"} if given.get("output_dir") is None else {}
        return {"loss": {}, **given, **folder}

    @model_validator(mode="after")
    def _fits_together(self):
        if self.data.max_length > self.batch.row_length:
            raise AtKey(
                "data.max_length",
                f"found {self.data.max_length}, expected at most batch.row_length, "
                f"which is {self.batch.row_length}: a prompt and its completion never straddle a row",
            )
        from care_jax import losses

        specs = [losses.spec(losses.get(one.name)) for one in self.losses]
        views = {spec.view: one.name for one, spec in zip(self.losses, specs)}
        if len(views) > 1:
            shown = ", ".join(f"{name} takes {view}" for view, name in views.items())
            raise AtKey("loss", f"losses of one list share a view, found {shown}")
        if any(spec.needs_kl for spec in specs) and self.batch.examples < 2:
            raise AtKey(
                "batch.examples", "found 1, expected at least 2: the KL term reads the completions of another question"
            )
        if not any(one.weight for one in self.losses):
            raise AtKey("loss.weight", "found 0 for every loss, expected one above 0: nothing would be trained")
        return self

    @classmethod
    def from_any(cls, given: "Config | Mapping[str, Any] | str | os.PathLike[str]", **overrides: Any) -> "Config":
        """A Config, a nested mapping, or the path or name of a recipe; overrides: dotted keys or whole blocks."""
        if isinstance(given, Config):
            values = given.model_dump()
        elif isinstance(given, Mapping):
            values = dict(given)
        elif isinstance(given, str | os.PathLike):
            values = _of_recipe(given, ())
        else:
            raise UserError(f"configuration: found {type(given).__name__}, expected a Config, a mapping or a path")
        return resolve(files.with_overrides(values, list(overrides.items())))


def resolve(values: Mapping[str, Any]) -> Config:
    """Validates a nested mapping; one UserError with a line for each mistake."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(message(error, Config)) from None


def load(recipe: str | os.PathLike[str], *machines: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Config:
    """The configuration of a recipe, machines and `key=value` overrides: later wins.

    recipe, machines: paths, or names of what is shipped in configs/ and configs/machines/.
    """
    return resolve(files.with_overrides(_of_recipe(recipe, machines), files.split_overrides(overrides)))


def over(values: Mapping[str, Any], machines: Iterable[str | os.PathLike[str]], overrides: Iterable[str]) -> Config:
    """A whole run's values, with machines and `key=value` overrides laid over them."""
    for machine in machines:
        values = files.merged(values, files.read(machine, "machine"))
    return resolve(files.with_overrides(values, files.split_overrides(overrides)))


def parse(text: str) -> Config:
    """What `dump` wrote."""
    return resolve(files.parse(text, "configuration"))


def _of_recipe(recipe: str | os.PathLike[str], machines: Iterable[str | os.PathLike[str]]) -> dict[str, Any]:
    values = files.read(recipe, "recipe")
    if values.get("name") is None:
        values["name"] = pathlib.Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    for machine in machines:
        values = files.merged(values, files.read(machine, "machine"))
    return values


def dump(config: Config) -> str:
    """The whole configuration as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def with_template_date(config: Config, date: str | None) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"template_date": date})})


def steps_of(interval: int | float, total: int) -> int:
    """Steps of an interval in a run of `total`: below 1 a fraction, rounded up (so above 0 at least one); 0 is none."""
    if interval >= 1 or interval == 0:
        return int(interval)
    return max(1, math.ceil(interval * total - 1e-9))  # 0.1 * 30 is a little more than 3


# What may change between two starts of one run: where it runs, what it writes, how often.
_NO_MATHS = {
    *("name", "output_dir", "resume", "mesh", "checkpoint", "nonfinite", "profile", "log_every", "eval_every"),
    *("evaluation", "trackers", "model.remat", "model.attention", "data.strict", "reference.mode"),
    *("batch.row_length", "batch.microbatch_rows", "batch.packing", "batch.share_responses", "batch.share_prompts"),
    "optimizer.accumulate_dtype",
}


def _maths(config: Config) -> dict[str, Any]:
    """Dotted key -> value of whatever changes the numbers of a run beyond rounding."""
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if path in _NO_MATHS:
            return
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
            for index, inner in enumerate(value):
                walk(inner, f"{path}.{index}")
        else:
            flat[path] = value

    walk(config.model_dump(mode="json"), "")
    return flat


# What moves sums about: equal numbers to rounding, not to the bit.
_ROUNDING = (
    *("mesh", "model.remat", "model.attention", "reference.mode", "optimizer.accumulate_dtype"),
    *("batch.row_length", "batch.microbatch_rows", "batch.packing", "batch.share_responses", "batch.share_prompts"),
)


def rounding_differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Key -> (value in a, value in b) of the keys that may change between two starts but not to the bit."""

    def at(config: Config, key: str) -> Any:
        value = config.model_dump(mode="json")
        for part in key.split("."):
            value = value[part]
        return value

    return {key: (at(a, key), at(b, key)) for key in _ROUNDING if at(a, key) != at(b, key)}


def maths_hash(config: Config) -> str:
    """Sixteen hex digits of what changes a run's numbers; equal where `differences` finds none."""
    text = json.dumps(_maths(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Key -> (value in a, value in b), None where absent, of the keys that change a run's numbers and differ."""
    left, right = _maths(a), _maths(b)
    keys = [*left, *(key for key in right if key not in left)]
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def summary(config: Config) -> str:
    """A few lines for the start of a run."""
    losses = " + ".join(
        (f"{one.weight:g} " if one.weight != 1 else "")
        + one.name
        + (
            f"({', '.join(f'{key}={value}' for key, value in one.hyperparameters.items())})"
            if one.hyperparameters
            else ""
        )
        for one in config.losses
    )
    data, batch, optimizer = config.data, config.batch, config.optimizer
    sources = ", ".join(
        f"{one.reader}:{one.path}" + (f" x{one.weight:g}" if one.weight != 1 else "") for one in data.train
    )
    length = " and ".join(
        [f"{data.epochs} epoch(s)"] * (data.epochs is not None)
        + [f"{data.max_steps} steps"] * (data.max_steps is not None)
    )
    rows = f"{batch.microbatch_rows} rows of {batch.row_length}"
    rate = f"{optimizer.learning_rate:g}, {optimizer.schedule}, warmup {optimizer.warmup:g}"
    return "\n".join(
        (
            f"{config.name} -> {config.output_dir}, seed {config.seed}",
            f"  model      {config.model.path} ({config.model.init}, {config.model.dtype}, remat {config.model.remat})",
            f"  data       {sources}; pairs {data.pairs.policy}, min gap {data.pairs.min_gap:g}; {length}",
            f"  batch      {batch.examples} x {batch.unit} a step; {rows} at once",
            f"  loss       {losses}",
            f"  optimizer  {optimizer.name}, {rate}",
        )
    )
