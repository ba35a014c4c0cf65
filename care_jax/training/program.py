"""The compiled step of a run: one program, whose static sizes come from the plan of the data."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from care_jax import sharding
from care_jax.config import Config
from care_jax.data.packing.batch import Batch
from care_jax.distributed import say
from care_jax.training.objective import Objective
from care_jax.training.state import ModelAndOptimizer
from care_jax.training.step import State, make_step

TrainStep = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]


def jit_step(
    config: Config, objective: Objective, trained: ModelAndOptimizer, shardings: State, batch_shardings: Batch
) -> jax.stages.Wrapped:
    """Returns the jitted step of a run, (state, batch) -> (state, metrics). The state is donated.

    `care-jax plan` compiles the same function.
    """
    step = make_step(
        trained.model,
        objective,
        trained.optimizer,
        accumulate_dtype=jnp.dtype(config.optimizer.accumulate_dtype),
        examples=config.batch.examples,
    )
    everywhere = sharding.replicated(shardings.step.mesh)
    return jax.jit(
        step, in_shardings=(shardings, batch_shardings), out_shardings=(shardings, everywhere), donate_argnums=0
    )


def compile_step(jitted: jax.stages.Wrapped, state: State, batch: Batch) -> tuple[TrainStep, float]:
    """Compiles the step for this state and batch; returns the program and the seconds that it took."""
    began = time.perf_counter()
    compiled = jitted.lower(state, batch).compile()
    seconds = time.perf_counter() - began
    say(f"train step compiled in {seconds:.1f} s")
    return compiled, seconds
