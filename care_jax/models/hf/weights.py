"""Fills declared weights from the tensors of safetensors files, each part straight onto its device."""

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from care_jax import sharding
from care_jax.errors import UserError
from care_jax.models import arch as arch_lib
from care_jax.models.arch import Params, Weight
from care_jax.models.hf.safetensors_io import DTYPES, Tensor

Index = tuple[slice, ...]


def make_weight(path: str, weight: Weight, part_at: Callable[[Index], np.ndarray], mesh: Mesh | None) -> jax.Array:
    """Returns one weight, placed on `mesh` as declared (None: on the default device).

    part_at: returns the host array of one index of the weight; each device's part is requested separately.
    """
    everything = tuple(slice(0, size) for size in weight.shape)
    # Waits for each weight: else the host's parts of several transfers would be in memory at once.
    if mesh is None:
        return jax.block_until_ready(jax.device_put(part_at(everything)))
    parts: dict[tuple[tuple[int | None, int | None], ...], np.ndarray] = {}  # devices with the same part share it

    def shared_part(index: Index | None) -> np.ndarray:
        index = everything if index is None else index
        key = tuple((dimension.start, dimension.stop) for dimension in index)
        if key not in parts:
            parts[key] = part_at(index)
        return parts[key]

    placement = weight.sharding(mesh, path)
    return jax.block_until_ready(jax.make_array_from_callback(weight.shape, placement, shared_part))


def read_weight(
    path: str, weight: Weight, tensors: Mapping[str, Tensor], dtype: DTypeLike, mesh: Mesh | None
) -> jax.Array:
    """Reads one weight from its tensors, in `dtype`; the host holds no more than its own parts of this weight."""

    def part_at(index: Index) -> np.ndarray:
        spans = [range(*dimension.indices(size)) for dimension, size in zip(index, weight.shape)]
        out = np.empty([len(span) for span in spans], dtype)
        inner = index[1:] if weight.stacked else index
        shape = weight.shape[1:] if weight.stacked else weight.shape
        # Files join heads and their size. Reshaping a mapped tensor copies nothing, so only the slice is read.
        for row, layer in enumerate(spans[0] if weight.stacked else range(1)):
            value = tensors[weight.hf_name.format(i=layer)].read(shape, inner)
            out[(row, ...) if weight.stacked else ...] = value
        return out

    axes = () if mesh is None or jax.process_count() == 1 else _axes_of_rows(weight, mesh)
    if mesh is None or not axes:
        return make_weight(path, weight, part_at, mesh)
    return _read_by_rows(path, weight, part_at, mesh, axes)


def _axes_of_rows(weight: Weight, mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes over which to read the rows of a file's matrix if the mesh splits it within rows, else ().

    A file stores row after row: to read its part within rows, every process would have to fetch all of them.
    """
    last = sharding.spec(weight.axes)[-1]
    within_rows = (last,) if isinstance(last, str) else last or ()
    if len(weight.hf_shape) < 2 or math.prod(mesh.shape[axis] for axis in within_rows) == 1:
        return ()
    axes = tuple(axis for axis in sharding.MESH_AXES if mesh.shape[axis] > 1)
    while axes and weight.hf_shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[1:]
    return axes


def _read_by_rows(
    path: str, weight: Weight, part_at: Callable[[Index], np.ndarray], mesh: Mesh, axes: tuple[str, ...]
) -> jax.Array:
    """Reads one weight with its rows split over all devices, then sends every part to its place."""
    stacked = weight.shape[:1] if weight.stacked else ()
    inner = weight.shape[len(stacked) :]
    rows = weight.hf_shape[0]
    # The first `outer` dimensions of the weight are the file's rows, the others its columns.
    outer = 1
    while math.prod(inner[:outer]) < rows:
        outer += 1

    def full_rows(index: Index | None) -> np.ndarray:
        assert index is not None  # every device of the mesh holds some rows
        first, end, _ = index[len(stacked)].indices(rows)
        size = math.prod(inner[1:outer])  # rows per entry of the first dimension
        low, high = first // size, -(-end // size)
        part = part_at((*(slice(0, n) for n in stacked), slice(low, high), *(slice(0, n) for n in inner[1:])))
        flat = part.reshape(*stacked, (high - low) * size, weight.hf_shape[1])
        return flat[..., first - low * size : end - low * size, :]

    by_rows = NamedSharding(mesh, PartitionSpec(*(None for _ in stacked), axes))
    placement = weight.sharding(mesh, path)
    matrix = jax.make_array_from_callback((*stacked, *weight.hf_shape), by_rows, full_rows)
    return jax.block_until_ready(jax.jit(lambda x: x.reshape(weight.shape), out_shardings=placement)(matrix))


def check_tensors(declared: Params, tensors: Mapping[str, Tensor], complaint: str) -> None:
    """Raises one UserError, `complaint` and a line for every tensor that is missing, surplus or of a wrong shape."""
    expected: dict[str, tuple[int, ...]] = {}
    for weight in jax.tree.leaves(declared, is_leaf=arch_lib.is_weight):
        for layer in range(weight.shape[0] if weight.stacked else 1):
            expected[weight.hf_name.format(i=layer)] = weight.hf_shape
    lines = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    lines += [f"surplus {name} {list(tensors[name].shape)}" for name in tensors if name not in expected]
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            lines.append(f"misshapen {name}: found {list(tensors[name].shape)}, expected {list(shape)}")
        if name in tensors and tensors[name].dtype not in DTYPES:
            lines.append(f"{name}: dtype {tensors[name].dtype}, expected one of {', '.join(DTYPES)}")
    if lines:
        raise UserError("\n  ".join([f"{complaint}:", *lines]))
