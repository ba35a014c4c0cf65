"""Bytes on one device: of a tree of arrays, of a compiled program, and how much there is."""

import math

import jax
import numpy as np

from care_jax import hardware


def bytes_per_device(tree: object) -> int:
    """Returns the bytes that each device holds of a tree of arrays or of shapes with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += math.prod(shape) * np.dtype(leaf.dtype).itemsize
    return total


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


def memory_limit() -> int | None:
    """Returns the bytes of a device's memory that a run may use; None if the backend does not report its memory."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(hardware.MEMORY_FRACTION * limit)
