"""From numpy batches to global arrays on the mesh; shardings of a training state from its weights' declarations."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from care_jax import hardware, sharding
from care_jax.data.packing.plans import Batch
from care_jax.training.step import State

ROW_ARRAYS = ("tokens", "positions", "segment_ids", "prompt_segment_ids")


@functools.cache
def own_rows(mesh: Mesh, rows: int) -> slice:
    """The rows of every microbatch that this process must fill: those of its own devices."""
    placed = sharding.sharding(mesh, ("rows",), (rows,), "batch.microbatch_rows")
    slices = [index[0] for index in placed.addressable_devices_indices_map((rows,)).values() if index is not None]
    low = min(part.start or 0 for part in slices)
    high = max(rows if part.stop is None else part.stop for part in slices)
    return slice(low, high)


def batch_shardings(batch: Batch, mesh: Mesh) -> Batch:
    """Rows over data and fsdp; the numbers of responses, pairs and lists everywhere."""
    rows = NamedSharding(mesh, sharding.spec((None, "rows", None)))
    everywhere = sharding.replicated(mesh)
    whole = jax.tree.map(lambda _: everywhere, batch)
    placed = dataclasses.replace(whole, **{name: rows for name in ROW_ARRAYS})
    if batch.mismatched is None:
        return placed
    return dataclasses.replace(placed, mismatched=batch_shardings(batch.mismatched, mesh))


def to_devices(batch: Batch, shardings: Batch, rows: int) -> Batch:
    """Global arrays from this process's own rows; rows: of a microbatch over all processes."""

    def place(local: Any, where: NamedSharding) -> jax.Array:
        shape = np.shape(local)
        if where.spec and len(where.spec) == 3:
            shape = (shape[0], rows, shape[2])
        return jax.make_array_from_process_local_data(where, np.asarray(local), shape)

    return jax.tree.map(place, batch, shardings)


def state_shardings(
    state: State, weights: Any, optimizer: optax.GradientTransformation, mesh: Mesh, adapters: Any = None
) -> State:
    """Shardings of a whole (abstract) state: moments as the weights they belong to, the rest everywhere.

    Factored moments (adafactor's) lack one of their weight's dimensions, and are sharded along those that they have.

    weights, adapters: the shardings of `state.params` and `state.lora`, from the declarations.
    """
    everywhere = sharding.replicated(mesh)
    trained = weights if state.lora is None else adapters

    def moment(leaf, weight, placed):
        if leaf.shape == weight.shape:
            return placed
        parts = (*placed.spec, *(None,) * (weight.ndim - len(placed.spec)))
        for axis in range(weight.ndim):  # of two dimensions of one size either will do
            if leaf.shape == weight.shape[:axis] + weight.shape[axis + 1 :]:
                return NamedSharding(mesh, PartitionSpec(*parts[:axis], *parts[axis + 1 :]))
        return everywhere

    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        moment,
        state.opt_state,
        state.trainable(),
        trained,
        transform_non_params=lambda _: everywhere,
    )
    return State(everywhere, everywhere, weights, adapters, opt_state)


def placed_shapes(tree: Any, shardings: Any) -> Any:
    """The shapes and dtypes of a tree, with where each leaf lies."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def bytes_per_device(tree: Any) -> int:
    """Bytes that each device holds of a tree of placed shapes."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += math.prod(shape) * np.dtype(leaf.dtype).itemsize
    return total


def bytes_beside_arguments(compiled: Any) -> int:
    """Bytes a device that a program needs at its peak beside its arguments: temporaries, code, and results that take
    no argument's place.
    """
    sizes = compiled.memory_analysis()
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    if hardware.platform() == "tpu":
        # Not temp_size_in_bytes, which there exceeds what is allocated: libtpu takes programs with which it and the
        # arguments are more than the chip's memory (docs/scale.md).
        return sizes.peak_memory_in_bytes - sizes.argument_size_in_bytes + results + sizes.generated_code_size_in_bytes
    return sizes.temp_size_in_bytes + results + sizes.generated_code_size_in_bytes
