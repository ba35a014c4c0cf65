"""The blocks of a run's configuration, one class each: exactly the keys that something reads, with their defaults."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_serializer, model_validator

from care_jax.config.types import (
    AtKey,
    Block,
    Count,
    Fraction,
    Integer,
    Interval,
    NonNegative,
    Positive,
    Share,
    Switch,
    Text,
    Warmup,
    finite,
    shown,
)
from care_jax.errors import nearest

Dtype = Literal["float32", "bfloat16"]
UnitName = Literal["pair", "group"]


def list_or(tag_of_list: str, tag_of_all_else: str) -> Discriminator:
    return Discriminator(lambda value: tag_of_list if isinstance(value, list | tuple) else tag_of_all_else)


def text_or(tag_of_text: str, tag_of_all_else: str) -> Discriminator:
    return Discriminator(lambda value: tag_of_text if isinstance(value, str) else tag_of_all_else)


def _exactly_one(block: Block, *keys: str) -> Any:
    given = [key for key in keys if getattr(block, key) is not None]
    if len(given) != 1:
        raise ValueError(f"found {' and '.join(given) or 'none'}, expected exactly one of {', '.join(keys)}")
    return block


class LoraConfig(Block):
    r: Count = 16
    alpha: Positive = 32.0
    target_modules: Annotated[
        Annotated[Literal["all"], Tag("<all>")] | Annotated[tuple[Text, ...], Tag("<names>")],
        text_or("<all>", "<names>"),
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


class Limit(Block):
    """At most so many questions, pairs or tokens; one of the three."""

    questions: Count | None = None
    pairs: Count | None = None
    tokens: Count | None = None

    @model_validator(mode="after")
    def _one(self):
        return _exactly_one(self, "questions", "pairs", "tokens")

    @model_serializer
    def _set_key_only(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if value is not None}


class SourceConfig(Block):
    """A data set and what to take of it; null: all. weight: passes through it an epoch."""

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


class Split(Block):
    """Questions held out of the training data: a share or a number of them."""

    fraction: Fraction | None = None
    questions: Count | None = None

    @model_validator(mode="after")
    def _one(self):
        return _exactly_one(self, "fraction", "questions")

    @model_serializer
    def _set_key_only(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if value is not None}


class PairsConfig(Block):
    """weights: what a pair counts in the loss's mean; gap: the difference of its ratings."""

    policy: Literal["all", "best_worst", "adjacent", "random"] = "best_worst"
    min_gap: Positive = 1.0
    max_per_question: Count | None = None
    weights: Literal["equal", "gap"] = "equal"


class LabelsConfig(Block):
    desirable_min: NonNegative = 7.0
    undesirable_max: NonNegative = 4.0

    @model_validator(mode="after")
    def _apart(self):
        if self.undesirable_max >= self.desirable_min:
            raise AtKey(
                "undesirable_max",
                f"found {self.undesirable_max:g}, expected less than desirable_min, "
                f"which is {self.desirable_min:g}: no response is both",
            )
        return self


class DataConfig(Block):
    """template_date: what a chat template that asks for the date gets; the run's first start fills it in."""

    train: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    eval: Annotated[
        Annotated[Split, Tag("<share>")] | Annotated[tuple[SourceConfig, ...], Tag("<sources>")],
        list_or("<sources>", "<share>"),
    ] = Split(fraction=0.05)
    pairs: PairsConfig = PairsConfig()
    labels: Annotated[
        Annotated[Literal["best", "relative"], Tag("<name>")] | Annotated[LabelsConfig, Tag("<bounds>")],
        text_or("<name>", "<bounds>"),
    ] = LabelsConfig()
    fraction: Share = 1.0
    epochs: Count | None = 1
    max_steps: Count | None = None
    strict: Switch = False
    shuffle: Switch = True
    max_length: Count = 2048
    chat_template: Text = "model"
    template_date: Text | None = None

    @model_validator(mode="after")
    def _ends(self):
        if self.epochs is None and self.max_steps is None:
            raise AtKey("epochs", "found nothing, expected a number of epochs, or data.max_steps set")
        return self


class BatchConfig(Block):
    unit: UnitName = "pair"
    examples: Count = 128
    row_length: Count = 2048
    microbatch_rows: Count = 8
    packing: Switch = True
    share_responses: Switch = True
    share_prompts: Switch = True
    reduction: UnitName = "pair"


class LossConfig(Block):
    """A loss and all of its hyperparameters (its signature gives their types and defaults); weight: in a list."""

    name: Text = "dpo"
    weight: NonNegative = 1.0
    hyperparameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        own = {key: given[key] for key in ("name", "weight") if key in given}
        name = own.get("name", "dpo")
        if not isinstance(name, str):
            return own  # the field's own type says what is wrong
        from care_jax import losses

        for key, value in given.items():
            if not finite(value):
                raise AtKey(key, f"found {shown(value)}, expected a finite number")
        rest = {key: value for key, value in given.items() if key not in own}
        known = losses.spec(losses.bind(name, **rest)).hyperparameters
        return own | {"hyperparameters": {key: default for key, (_, default) in known.items()}}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        weight = {} if self.weight == 1.0 else {"weight": self.weight}
        return {"name": self.name, **weight, **self.hyperparameters}


class ReferenceConfig(Block):
    mode: Literal["precompute", "online"] = "precompute"
    path: Text | None = None


# The keys that an optimizer has no use for; one of your own (module:function) may name any.
_UNUSED = {
    "adamw": (),
    "sgd": ("b1", "b2", "eps", "moment_dtype"),
    "lion": ("eps",),
    "adafactor": ("b1", "b2", "eps"),
}


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
    def _used(self):
        module, colon, function = self.name.partition(":")
        if self.name not in _UNUSED and not (colon and module and function):
            raise AtKey(
                "name",
                f"found {self.name!r}{nearest(self.name, list(_UNUSED))}, "
                f"expected {', '.join(_UNUSED)}, or your own as module:function",
            )
        for key in _UNUSED.get(self.name, ()):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                raise AtKey(key, f"found {value!r}, but {self.name} does not use it: leave it at {default!r}")
        return self


class MeshConfig(Block):
    data: Integer = 1
    fsdp: Integer = -1
    tensor: Integer = 1

    @model_validator(mode="after")
    def _sizes(self):
        sizes = self.__dict__
        for axis, size in sizes.items():
            if size == 0 or size < -1:
                raise AtKey(axis, f"found {size}, expected a positive number, or -1 for what is left")
        if list(sizes.values()).count(-1) > 1:
            twice = [axis for axis, size in sizes.items() if size == -1]
            raise AtKey(twice[-1], f"found -1, but mesh.{twice[0]} is -1 too: one axis takes what is left")
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
    """A task and how it is asked; the keys are the options of care-jax evaluate. name: what its numbers are called."""

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
    def _examples_from_somewhere(self):
        if (self.num_fewshot is None) != (self.fewshot is None):
            raise AtKey("num_fewshot", "goes with fewshot, the file of the examples: found only one of them")
        return self

    @property
    def label(self) -> str:
        asked = "" if self.query_language == "native" else f" ({self.query_language})"
        return self.name or f"{self.task}{asked}"


class EvaluationConfig(Block):
    """Tasks that the policy answers before training, at the end, and every so often."""

    tasks: Annotated[tuple[TaskConfig, ...], Field(min_length=1)]
    every: Interval = 0.5

    @model_validator(mode="after")
    def _named_apart(self):
        labels = [one.label for one in self.tasks]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise AtKey("tasks", f"two of them are called {twice!r}: give them a `name` each")
        return self
