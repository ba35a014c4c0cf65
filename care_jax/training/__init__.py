"""The step, the loop around it, and what makes a run repeatable. `make_step` and `train` are the way in.

Attributes are lazy: what is here without jax (a signal's handling) is used by commands that need none.
"""

import importlib
from typing import Any

_PLACES = {
    **dict.fromkeys(("Run", "train"), "care_jax.training.loop"),
    **dict.fromkeys(("State", "init_state", "make_logps", "make_step"), "care_jax.training.step"),
}

__all__ = ["Run", "State", "init_state", "make_logps", "make_step", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'care_jax.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
