"""care_jax: preference learning about culture, in pure JAX. Attributes are lazy, so importing it does not load jax."""

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = ("losses", "logps", "models", "data", "sharding", "training", "evaluation", "testing", "config")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"care_jax.{name}")
    if name == "train":
        return importlib.import_module("care_jax.training.loop").train
    if name == "Config":
        return importlib.import_module("care_jax.config").Config
    raise AttributeError(f"module 'care_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_SUBMODULES, "train", "Config"]
