"""The mesh, the one table from logical axes to mesh axes, and several processes as one."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from care_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Weights are declared by logical axes and never name the mesh; this table is the only place that does.
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
    "rows": ("data", "fsdp"),
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor over all devices; one of the sizes may be -1 and takes what is left.

    Without `devices` the processes of this job are joined first (`start_processes`), and it is over those of all.
    Raises UserError where the sizes do not multiply to the number of devices.
    """
    if devices is None:
        start_processes()
        claim_memory()
        devices = jax.devices()
    devices = list(devices)
    sizes = [data, fsdp, tensor]
    shown = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh: {shown}: sizes are positive, and at most one is -1")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if -1 in sizes or math.prod(sizes) != len(devices):
        raise UserError(f"mesh: {shown} does not fit {len(devices)} device(s): the sizes must multiply to that number")
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The partition of an array whose dimensions carry these logical axes (None: not sharded)."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def sharding(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], name: str = "array") -> NamedSharding:
    """The sharding of an array of `shape` on `mesh`; UserError with the numbers where a size does not divide."""
    partition = spec(axes)
    for axis, size, names in zip(axes, shape, partition):
        named = () if names is None else (names,) if isinstance(names, str) else names
        parts = math.prod(mesh.shape[one] for one in named)
        if size % parts:
            raise UserError(
                f"mesh: {name} has {axis}={size}, which does not divide by the {parts} parts of mesh axis {names!r}"
            )
    return NamedSharding(mesh, partition)


def is_writer() -> bool:
    """Whether this process of several writes what all of them know."""
    return jax.process_index() == 0


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Asks the partitioner for this layout of an activation; does nothing outside `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def platform() -> str:
    """cpu, gpu or tpu: of the mesh in context (perhaps a machine that is only compiled for), else of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    backend = jax.default_backend() if device is None else device.platform
    return "gpu" if backend in ("cuda", "rocm") else backend


def precision(dtype: Any) -> jax.lax.Precision | None:
    """Of matrix products: float32 means float32, which accelerators otherwise multiply in fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


# A process that says nothing for so long is dead, and the others end too: a job manager starts all of them again.
_SILENCE_SECONDS = 30


def start_processes() -> None:
    """Joins the other processes of this job, before anything asks jax for a device; alone it does nothing.

    By address: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. By what jax finds out itself: in a step
    of several SLURM tasks, on GKE's TPU hosts, and wherever CARE_JAX_DISTRIBUTED=auto (the hosts of a TPU VM).
    Raises UserError where the address comes without the two numbers.
    """
    found = os.environ
    if jax.distributed.is_initialized():
        return
    options = {"heartbeat_timeout_seconds": _SILENCE_SECONDS, "shutdown_timeout_seconds": _SILENCE_SECONDS}
    if "JAX_COORDINATOR_ADDRESS" in found:
        numbers = [found.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        if not all(number.isdecimal() for number in numbers):
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS={found['JAX_COORDINATOR_ADDRESS']} asks for JAX_NUM_PROCESSES and "
                f"JAX_PROCESS_ID too, as numbers; found {numbers[0]!r} and {numbers[1]!r}"
            )
        jax.distributed.initialize(
            num_processes=int(numbers[0]),
            process_id=int(numbers[1]),
            cluster_detection_method="deactivate",
            **options,  # type: ignore[arg-type]
        )
    elif (
        int(found.get("SLURM_STEP_NUM_TASKS") or 1) > 1
        or "," in found.get("TPU_WORKER_HOSTNAMES", "")
        or found.get("CARE_JAX_DISTRIBUTED") == "auto"
    ):
        jax.distributed.initialize(**options)  # type: ignore[arg-type]


def claim_memory() -> None:
    """Before jax is asked for a GPU: it takes three quarters of its memory (jax 0.10) unless it is told; plans count on
    nine tenths (`chips.SHARE`). What the environment says of it stands.
    """
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = "0.92"


def barrier(name: str) -> None:
    """Waits until every process stands here; alone it does nothing."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def anywhere(value: bool) -> bool:
    """Whether it is true in some process; all of them ask, and wait for the answer."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


class Agreement:
    """What processes saw each for itself (a signal, a clock), as something that all of them know at the same moment.

    One process knows at once. Of several, all know what any of them said one call ago: the answer is under way while
    the devices work, so that nobody waits.
    """

    def __init__(self) -> None:
        self._asked: jax.Array | None = None

    def any(self, *said: bool) -> tuple[bool, ...]:
        """For each of the values (always as many of them), whether some process gave a true one."""
        if jax.process_count() == 1:
            return said
        asked, self._asked = self._asked, _sum_over_processes(np.asarray(said, np.int32))
        return tuple(bool(count) for count in np.asarray(asked)) if asked is not None else (False,) * len(said)


def _sum_over_processes(values: np.ndarray) -> jax.Array:
    """[n] int32 -> its sum over processes, not waited for."""
    one_each = [min(jax.local_devices(process_index=p), key=lambda d: d.id) for p in range(jax.process_count())]
    mesh = Mesh(np.asarray(one_each), ("process",))
    spread = NamedSharding(mesh, PartitionSpec("process"))
    whole = jax.make_array_from_process_local_data(spread, values[None], (len(one_each), len(values)))
    return jax.jit(_total, out_shardings=NamedSharding(mesh, PartitionSpec()))(whole)


def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=0)
