"""Arrays on the mesh: the rows that a process fills, the shardings of a batch, global arrays, and bytes per device."""

import dataclasses
import functools
import math
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from care_jax import hardware, sharding
from care_jax.data.packing.batch import ROW_ARRAYS, Batch

Tree = TypeVar("Tree")


@functools.cache
def rows_of_this_process(mesh: Mesh, rows: int) -> slice:
    """Returns the rows of every microbatch that this process must fill: those of its own devices.

    rows: rows per microbatch, summed over processes.
    """
    placed = sharding.sharding(mesh, ("rows",), (rows,), "batch.microbatch_rows")
    slices = [index[0] for index in placed.addressable_devices_indices_map((rows,)).values() if index is not None]
    low = min(part.start or 0 for part in slices)
    high = max(rows if part.stop is None else part.stop for part in slices)
    return slice(low, high)


def batch_shardings(batch: Batch, mesh: Mesh) -> Batch:
    """Returns a batch of shardings: token rows are split over data and fsdp, all other arrays are replicated."""
    rows = NamedSharding(mesh, sharding.spec((None, "rows", None)))
    everywhere = sharding.replicated(mesh)
    replicated = jax.tree.map(lambda _: everywhere, batch)
    placed = dataclasses.replace(replicated, **{name: rows for name in ROW_ARRAYS})
    if batch.mismatched is None:
        return placed
    return dataclasses.replace(placed, mismatched=batch_shardings(batch.mismatched, mesh))


def to_devices(batch: Batch, shardings: Batch, rows: int) -> Batch:
    """Makes global arrays of the rows that each process has filled.

    rows: rows per microbatch, summed over processes.
    """

    def place(local: np.ndarray | np.generic | int, placed: NamedSharding) -> jax.Array:
        shape = np.shape(local)
        if placed.spec and len(placed.spec) == 3:
            shape = (shape[0], rows, shape[2])
        return jax.make_array_from_process_local_data(placed, np.asarray(local), shape)

    return jax.tree.map(place, batch, shardings)


def with_shardings(tree: Tree, shardings: Tree) -> Tree:
    """Returns the shapes and dtypes of a tree, each leaf with its sharding."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


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
