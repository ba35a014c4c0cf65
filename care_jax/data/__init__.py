"""From datasets to packed rows. Modules are lazy attributes: importing this loads neither transformers nor datasets."""

import importlib
from typing import Any

_MODULES = (
    "catalogue",
    "chat",
    "hygiene",
    "inspection",
    "packing",
    "pipeline",
    "preferences",
    "questions",
    "readers",
    "report",
    "sheets",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"care_jax.data.{name}")
    if name in ("READERS", "read"):
        return getattr(importlib.import_module("care_jax.data.readers.registry"), name)
    raise AttributeError(f"module 'care_jax.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_MODULES, "READERS", "read"]
