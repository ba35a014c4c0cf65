"""Training: one step, a run, and what makes a run repeatable. `make_step` and `train` are the public functions.

Attributes are lazy, so that commands that need no jax can import the package.
"""

import importlib
from typing import Any

_MODULES = {
    **dict.fromkeys(("Run", "train"), "care_jax.training.loop"),
    **dict.fromkeys(("State", "init_state", "make_logps", "make_step"), "care_jax.training.step"),
}

__all__ = ["Run", "State", "init_state", "make_logps", "make_step", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'care_jax.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
