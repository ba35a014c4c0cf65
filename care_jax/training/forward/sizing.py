"""How many rows a microbatch of a pass without a gradient has: far more fit than in a training step."""

import dataclasses
from collections.abc import Callable, Sequence

import jax

from care_jax import distributed, hardware
from care_jax.data import pipeline
from care_jax.data.corpus import Corpus, SequenceId
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.plans import StepPlan
from care_jax.training.errors import out_of_memory
from care_jax.training.program import program_bytes

_MULTIPLES = (8, 4, 2)  # of the rows of the given shape


def largest_plan(
    corpus: Corpus, sequences: Sequence[SequenceId], shape: BatchShape, fits: Callable[[StepPlan], bool]
) -> StepPlan:
    """Plans the sequences with the most rows that fit, of which the sequences fill more than half."""
    for times in _MULTIPLES:
        larger = {name: times * getattr(shape, name) for name in ("rows", "responses", "completions")}
        plan = pipeline.plan_responses(corpus, sequences, dataclasses.replace(shape, **larger))
        filled = plan.tokens > plan.shape.rows * plan.shape.row_length // 2
        if filled and not distributed.anywhere(not fits(plan)):
            return plan
    return pipeline.plan_responses(corpus, sequences, shape)


def program_fits(compile_program: Callable[[], jax.stages.Compiled], limit: int) -> bool:
    """Returns whether a program and its arguments need at most `limit` bytes per device, as the compiler plans it."""
    try:
        program = compile_program()
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    sizes = program.memory_analysis()
    return sizes is not None and sizes.argument_size_in_bytes + program_bytes(program) <= limit


def memory_limit() -> int | None:
    """Returns the bytes of a device's memory that a run may use; None if the backend does not report its memory."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(hardware.MEMORY_FRACTION * limit)
