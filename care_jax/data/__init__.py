"""From datasets to packed rows. Parts are lazy attributes: importing this loads neither transformers nor datasets."""

import importlib
from typing import Any

_PARTS = "care_tfds chat corpus cultures curation packing pipeline preferences questions readers rows".split()  # noqa: SIM905


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"care_jax.data.{name}")
    if name in ("READERS", "read"):
        return getattr(importlib.import_module("care_jax.data.readers"), name)
    raise AttributeError(f"module 'care_jax.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_PARTS, "READERS", "read"]
