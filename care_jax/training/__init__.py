"""The step, the loop around it, and what makes a run repeatable. `make_step` and `train` are the way in."""

from care_jax.training.loop import Run, train
from care_jax.training.step import State, init_state, make_logps, make_step

__all__ = ["Run", "State", "init_state", "make_logps", "make_step", "train"]
