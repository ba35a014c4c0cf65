"""Tensors of safetensors files into declared weights, each straight to its place on the mesh."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from care_jax import sharding
from care_jax.errors import UserError
from care_jax.models import arch as arch_lib
from care_jax.models.arch import Params, Weight
from care_jax.models.hf.safetensors_io import DTYPES, Tensor

Index = tuple[slice, ...]


def place(path: str, weight: Weight, piece: Callable[[Index], np.ndarray], mesh: Mesh | None) -> jax.Array:
    """One weight, each device's piece of it made on the host and sent there."""
    whole = tuple(slice(0, size) for size in weight.shape)
    # Each weight is waited for, or the host pieces of several transfers would be alive at once.
    if mesh is None:
        return jax.block_until_ready(jax.device_put(piece(whole)))
    pieces: dict[Any, np.ndarray] = {}  # devices that hold the same piece share one reading

    def shared_piece(index: Index | None) -> np.ndarray:
        index = whole if index is None else index
        key = tuple((one.start, one.stop) for one in index)
        if key not in pieces:
            pieces[key] = piece(index)
        return pieces[key]

    placed = sharding.sharding(mesh, weight.axes, weight.shape, path)
    return jax.block_until_ready(jax.make_array_from_callback(weight.shape, placed, shared_piece))


def load_weights(path: str, weight: Weight, found: dict[str, Tensor], dtype: Any, mesh: Mesh | None) -> jax.Array:
    """One weight from its tensors, in `dtype`; the host holds at most this weight's own pieces."""

    def piece(index: Index) -> np.ndarray:
        spans = [range(*one.indices(size)) for one, size in zip(index, weight.shape)]
        out = np.empty([len(span) for span in spans], dtype)
        inner = index[1:] if weight.stacked else index
        shape = weight.shape[1:] if weight.stacked else weight.shape
        # A file joins heads and their size; reshaping a mapped tensor is free, so the slice alone is read.
        for row, layer in enumerate(spans[0] if weight.stacked else range(1)):
            value = found[weight.hf_name.format(i=layer)].read(shape, inner)
            out[(row, ...) if weight.stacked else ...] = value
        return out

    axes = () if mesh is None or jax.process_count() == 1 else _axes_of_rows(weight, mesh)
    return place(path, weight, piece, mesh) if mesh is None or not axes else _by_rows(path, weight, piece, mesh, axes)


def _axes_of_rows(weight: Weight, mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes over which to read the rows of a file's matrix, where its place on the mesh cuts within rows.

    Rows lie together; of a cut within them every process would have to fetch all.
    """
    cut = sharding.spec(weight.axes)[-1]
    within = (cut,) if isinstance(cut, str) else cut or ()
    if len(weight.hf_shape) < 2 or math.prod(mesh.shape[axis] for axis in within) == 1:
        return ()
    axes = tuple(axis for axis in sharding.MESH_AXES if mesh.shape[axis] > 1)
    while axes and weight.hf_shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[1:]
    return axes


def _by_rows(
    path: str, weight: Weight, piece: Callable[[Index], np.ndarray], mesh: Mesh, axes: tuple[str, ...]
) -> jax.Array:
    """One weight, its rows read by one device each and then sent where they belong."""
    stacked = weight.shape[:1] if weight.stacked else ()
    inner = weight.shape[len(stacked) :]
    rows = weight.hf_shape[0]
    # The dimensions of the weight that are the file's rows: all but the last ones that make up its columns.
    outer = 1
    while math.prod(inner[:outer]) < rows:
        outer += 1
    spread = NamedSharding(mesh, PartitionSpec(*(None for _ in stacked), axes))

    def whole_rows(index: Index | None) -> np.ndarray:
        assert index is not None  # every device of the mesh holds some rows
        taken = index[len(stacked)]
        first, end, _ = taken.indices(rows)
        size = math.prod(inner[1:outer])  # rows of each entry of the first dimension
        low, high = first // size, -(-end // size)
        found = piece((*(slice(0, n) for n in stacked), slice(low, high), *(slice(0, n) for n in inner[1:])))
        flat = found.reshape(*stacked, (high - low) * size, weight.hf_shape[1])
        return flat[..., first - low * size : end - low * size, :]

    placed = sharding.sharding(mesh, weight.axes, weight.shape, path)
    read = jax.make_array_from_callback((*stacked, *weight.hf_shape), spread, whole_rows)
    return jax.block_until_ready(jax.jit(lambda x: x.reshape(weight.shape), out_shardings=placed)(read))


def check(declared: Params, found: dict[str, Tensor], complaint: str) -> None:
    """One UserError, `complaint` and a line for every missing, surplus or misshapen tensor."""
    expected: dict[str, tuple[int, ...]] = {}
    for weight in jax.tree.leaves(declared, is_leaf=arch_lib.is_weight):
        for layer in range(weight.shape[0] if weight.stacked else 1):
            expected[weight.hf_name.format(i=layer)] = weight.hf_shape
    lines = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    lines += [f"surplus {name} {list(found[name].shape)}" for name in found if name not in expected]
    for name, shape in expected.items():
        if name in found and found[name].shape != shape:
            lines.append(f"misshapen {name}: found {list(found[name].shape)}, expected {list(shape)}")
        if name in found and found[name].dtype not in DTYPES:
            lines.append(f"{name}: dtype {found[name].dtype}, expected one of {', '.join(DTYPES)}")
    if lines:
        raise UserError("\n  ".join([f"{complaint}:", *lines]))
