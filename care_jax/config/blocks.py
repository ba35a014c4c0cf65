"""The blocks of a run's configuration, one class each, with their keys and defaults."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, Tag, model_serializer, model_validator

from care_jax.config.types import (
    Block,
    Boolean,
    Count,
    Fraction,
    Integer,
    Interval,
    InvalidValue,
    NonNegative,
    Positive,
    Share,
    Text,
    Warmup,
    abbreviate,
    is_finite,
    tag_lists,
    tag_texts,
)
from care_jax.errors import nearest
from care_jax.textfiles import JsonObject

Dtype = Literal["float32", "bfloat16"]
UnitName = Literal["pair", "group"]


class OneKeyBlock(Block):
    """A block of which exactly one key is set; only that key is written."""

    @model_validator(mode="after")
    def _check_one_key(self) -> "OneKeyBlock":
        present = list(self._without_nulls())
        if len(present) != 1:
            keys = ", ".join(type(self).model_fields)
            raise ValueError(f"found {' and '.join(present) or 'none'}, expected exactly one of {keys}")
        return self

    @model_serializer
    def _without_nulls(self) -> JsonObject:
        return {key: value for key, value in self.__dict__.items() if value is not None}


class LoraConfig(Block):
    r: Count = 16
    alpha: Positive = 32.0
    target_modules: Annotated[
        Annotated[Literal["all"], Tag("<all>")] | Annotated[tuple[Text, ...], Tag("<names>")],
        tag_texts("<all>", "<names>"),
    ] = "all"
    base_dtype: Dtype = "bfloat16"


class ModelConfig(Block):
    """path: a Hugging Face folder, a hub id, or `sample`."""

    path: Text
    revision: Text | None = None
    init: Literal["pretrained", "random"] = "pretrained"
    dtype: Dtype = "bfloat16"
    param_dtype: Dtype = "float32"
    remat: Literal["none", "dots", "full", "offload"] = "full"
    attention: Literal["auto", "xla", "xla_chunked", "splash", "pallas"] = "auto"
    lora: LoraConfig | None = None


class Limit(OneKeyBlock):
    """The most questions, pairs or tokens that are used; one of the three."""

    questions: Count | None = None
    pairs: Count | None = None
    tokens: Count | None = None


class SourceConfig(Block):
    """A data set and the part of it to use; null means all. weight: passes through it per epoch."""

    reader: Text = "care"
    path: Text
    split: Text | None = None
    name: Text | None = None
    columns: dict[str, Text | None] | None = None
    revision: Text | None = None
    cultures: tuple[Text, ...] | None = None
    relations: tuple[Literal["native", "foreign"], ...] = ("native", "foreign")
    categories: tuple[Text, ...] | None = None
    sources: tuple[Text, ...] | None = None
    query_language: Literal["native", "english"] = "native"
    translations: Text | None = None
    limit: Limit | None = None
    weight: Positive = 1.0


class Split(OneKeyBlock):
    """Questions held out of the training data: a fraction or a number of them."""

    fraction: Fraction | None = None
    questions: Count | None = None


class PairsConfig(Block):
    """weights: the weight of a pair in the mean of the loss; `gap` is the difference of its ratings."""

    policy: Literal["all", "best_worst", "adjacent", "random"] = "best_worst"
    min_gap: Positive = 1.0
    max_per_question: Count | None = None
    weights: Literal["equal", "gap"] = "equal"


class LabelsConfig(Block):
    desirable_min: NonNegative = 7.0
    undesirable_max: NonNegative = 4.0

    @model_validator(mode="after")
    def _check_bounds(self) -> "LabelsConfig":
        if self.undesirable_max >= self.desirable_min:
            raise InvalidValue(
                "undesirable_max",
                f"found {self.undesirable_max:g}, expected less than desirable_min, "
                f"which is {self.desirable_min:g}: no response may be both",
            )
        return self


class DataConfig(Block):
    """template_date: the date for a chat template that asks for one; filled in when the run starts first."""

    train: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    eval: Annotated[
        Annotated[Split, Tag("<share>")] | Annotated[tuple[SourceConfig, ...], Tag("<sources>")],
        tag_lists("<sources>", "<share>"),
    ] = Split(fraction=0.05)
    pairs: PairsConfig = PairsConfig()
    labels: Annotated[
        Annotated[Literal["best", "relative"], Tag("<name>")] | Annotated[LabelsConfig, Tag("<bounds>")],
        tag_texts("<name>", "<bounds>"),
    ] = LabelsConfig()
    fraction: Share = 1.0
    epochs: Count | None = 1
    max_steps: Count | None = None
    strict: Boolean = False
    shuffle: Boolean = True
    max_length: Count = 2048
    chat_template: Text = "model"
    template_date: Text | None = None

    @model_validator(mode="after")
    def _check_length(self) -> "DataConfig":
        if self.epochs is None and self.max_steps is None:
            raise InvalidValue("epochs", "found nothing, expected a number of epochs, or data.max_steps set")
        return self


class BatchConfig(Block):
    unit: UnitName = "pair"
    examples: Count = 128
    row_length: Count = 2048
    microbatch_rows: Count = 8
    packing: Boolean = True
    share_responses: Boolean = True
    share_prompts: Boolean = True
    reduction: UnitName = "pair"


class LossConfig(Block):
    """A loss and all its hyperparameters, whose types and defaults its signature gives.

    weight: factor of this loss in a list of several.
    """

    name: Text = "dpo"
    weight: NonNegative = 1.0
    hyperparameters: JsonObject = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_flat_keys(cls, values: object) -> object:
        """In a configuration the hyperparameters are keys beside `name` and `weight`."""
        if not isinstance(values, Mapping):
            return values
        fields = {key: values[key] for key in ("name", "weight") if key in values}
        name = fields.get("name", "dpo")
        if not isinstance(name, str):
            return fields  # validating the field says what is wrong
        from care_jax import losses  # loads jax

        for key, value in values.items():
            if not is_finite(value):
                raise InvalidValue(key, f"found {abbreviate(value)}, expected a finite number")
        rest = {key: value for key, value in values.items() if key not in fields}
        hyperparameters = losses.spec(losses.bind(name, **rest)).hyperparameters
        return fields | {"hyperparameters": {key: default for key, (_, default) in hyperparameters.items()}}

    @model_serializer
    def _as_flat_keys(self) -> JsonObject:
        weight = {} if self.weight == 1.0 else {"weight": self.weight}
        return {"name": self.name, **weight, **self.hyperparameters}


class ReferenceConfig(Block):
    mode: Literal["precompute", "online"] = "precompute"
    path: Text | None = None


# Optimizer -> the keys that it does not use; your own optimizer (module:function) may use any.
_UNUSED = {"adamw": (), "sgd": ("b1", "b2", "eps", "moment_dtype"), "lion": ("eps",), "adafactor": ("b1", "b2", "eps")}


class OptimizerConfig(Block):
    name: Text = "adamw"
    learning_rate: NonNegative = 5e-7
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Warmup = 0.1
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0
    moment_dtype: Dtype = "float32"
    accumulate_dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _check_keys_are_used(self) -> "OptimizerConfig":
        module, colon, function = self.name.partition(":")
        if self.name not in _UNUSED and not (colon and module and function):
            raise InvalidValue(
                "name",
                f"found {self.name!r}{nearest(self.name, list(_UNUSED))}, "
                f"expected {', '.join(_UNUSED)}, or your own as module:function",
            )
        for key in _UNUSED.get(self.name, ()):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                raise InvalidValue(key, f"found {value!r}, but {self.name} does not use it: leave it at {default!r}")
        return self


class MeshConfig(Block):
    data: Integer = 1
    fsdp: Integer = -1
    tensor: Integer = 1

    @model_validator(mode="after")
    def _check_sizes(self) -> "MeshConfig":
        sizes = self.__dict__
        for axis, size in sizes.items():
            if size == 0 or size < -1:
                raise InvalidValue(axis, f"found {size}, expected a positive number, or -1 for what is left")
        if list(sizes.values()).count(-1) > 1:
            free = [axis for axis, size in sizes.items() if size == -1]
            raise InvalidValue(free[-1], f"found -1, but mesh.{free[0]} is -1 too: only one axis takes what is left")
        return self


class CheckpointConfig(Block):
    every: Interval | None = 0.25
    minutes: Positive | None = None
    grace_seconds: Positive | None = None
    keep: Count = 2
    best: Text | None = None


class NonfiniteConfig(Block):
    max_consecutive: Count = 3


class ProfileConfig(Block):
    start: Count
    steps: Count


class TaskConfig(Block):
    """A task and its options, which are those of care-jax evaluate. name: the label of its numbers."""

    task: Text
    name: Text | None = None
    data: Text | None = None
    query_language: Literal["native", "english"] = "native"
    translations: Text | None = None
    language: Text | None = None
    prompt: Text | None = None
    method: Literal["auto", "logprob", "generate"] = "auto"
    mode: Literal["parity", "strict"] = "parity"
    columns: dict[str, Text] | None = None
    num_fewshot: Count | None = None
    fewshot: Text | None = None
    limit: Count | None = None
    temperature: NonNegative | None = None
    max_tokens: Count | None = None
    chat_template: Text | None = None

    @model_validator(mode="after")
    def _check_examples(self) -> "TaskConfig":
        if (self.num_fewshot is None) != (self.fewshot is None):
            raise InvalidValue("num_fewshot", "goes with fewshot, the file of the examples: found only one of them")
        return self

    @property
    def label(self) -> str:
        language = "" if self.query_language == "native" else f" ({self.query_language})"
        return self.name or f"{self.task}{language}"


class EvaluationConfig(Block):
    """Tasks that the policy answers before training, at the end, and at every interval in between."""

    tasks: Annotated[tuple[TaskConfig, ...], Field(min_length=1)]
    every: Interval = 0.5

    @model_validator(mode="after")
    def _check_labels(self) -> "EvaluationConfig":
        labels = [task.label for task in self.tasks]
        repeated = next((label for label in labels if labels.count(label) > 1), None)
        if repeated is not None:
            raise InvalidValue("tasks", f"two of them are called {repeated!r}: give each a `name`")
        return self
