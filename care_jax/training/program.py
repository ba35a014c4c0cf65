"""The compiled step of a run: one program, whose static sizes come from the plan of the data."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from care_jax import hardware, sharding
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


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes per device that a program needs at its peak in addition to its arguments: temporaries, code,
    and results that are not written over an argument.
    """
    sizes = compiled.memory_analysis()
    assert sizes is not None
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    if hardware.platform() == "tpu":
        # On TPUs temp_size_in_bytes is more than what is allocated: libtpu compiles programs for which it and the
        # arguments exceed the chip's memory (docs/scale.md).
        return sizes.peak_memory_in_bytes - sizes.argument_size_in_bytes + results + sizes.generated_code_size_in_bytes
    return sizes.temp_size_in_bytes + results + sizes.generated_code_size_in_bytes
