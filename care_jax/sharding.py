"""The device mesh, and the one table from logical axes to mesh axes."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from care_jax.distributed import start_processes
from care_jax.errors import UserError
from care_jax.hardware import claim_memory

MESH_AXES = ("data", "fsdp", "tensor")
_ROW_AXES = ("data", "fsdp")

# Weights and activations are declared by logical axes; only this table maps them to axes of the mesh.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layers": None,
    "norm": None,
    "lora": None,
    "rows": _ROW_AXES,
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with axes data, fsdp and tensor over all devices; one size may be -1, and is then computed.

    Without `devices` it first joins the processes of this job (`start_processes`), and the mesh spans all of their
    devices. Raises UserError if the product of the sizes is not the number of devices.
    """
    if devices is None:
        start_processes()
        claim_memory()
        devices = jax.devices()
    devices = list(devices)
    sizes = [data, fsdp, tensor]
    shown = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh: {shown}: expected positive sizes, of which one may be -1")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if -1 in sizes or math.prod(sizes) != len(devices):
        raise UserError(f"mesh: {shown} does not fit {len(devices)} device(s): the sizes must multiply to that number")
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Returns the partition of an array whose dimensions have these logical axes (None: not sharded)."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def sharding(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], name: str = "array") -> NamedSharding:
    """Returns the sharding of an array on `mesh`; raises UserError if a size does not divide by its mesh axes.

    name: name of the array, for the message.
    """
    partition = spec(axes)
    for axis, size, names in zip(axes, shape, partition):
        mesh_axes = () if names is None else (names,) if isinstance(names, str) else names
        parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in mesh_axes)
        if size % parts:
            raise UserError(
                f"mesh: {name} has {axis}={size}, which does not divide by the {parts} parts of mesh axis {names!r}"
            )
    return NamedSharding(mesh, partition)


def row_parts(mesh: Mesh | None) -> int:
    """Returns the number of mesh parts that rows are spread over, which must divide their number; 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in _ROW_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds completely."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Asks the partitioner for this sharding of an activation; does nothing outside `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec(axes))
