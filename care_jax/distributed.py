"""Several processes as one run: how they start, wait for each other and agree, and which of them writes."""

import functools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from care_jax.errors import UserError

# A process without a heartbeat for this long counts as dead, and the others end too: a job manager restarts them all.
_SILENCE_SECONDS = 30


def start_processes() -> None:
    """Joins the other processes of this job, if there are any. Call it before jax is asked for a device.

    If JAX_COORDINATOR_ADDRESS is set, JAX_NUM_PROCESSES and JAX_PROCESS_ID must be too. Otherwise jax finds out itself,
    in a SLURM step of several tasks, on GKE's TPU hosts, and if CARE_JAX_DISTRIBUTED=auto (the hosts of a TPU VM).
    Raises UserError if the address is set without the two numbers.
    """
    environment = os.environ
    if jax.distributed.is_initialized():
        return
    initialize = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=_SILENCE_SECONDS,
        shutdown_timeout_seconds=_SILENCE_SECONDS,
    )
    if "JAX_COORDINATOR_ADDRESS" in environment:
        numbers = [environment.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        if not all(number.isdecimal() for number in numbers):
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS={environment['JAX_COORDINATOR_ADDRESS']} requires JAX_NUM_PROCESSES and "
                f"JAX_PROCESS_ID, both numbers; found {numbers[0]!r} and {numbers[1]!r}"
            )
        initialize(num_processes=int(numbers[0]), process_id=int(numbers[1]), cluster_detection_method="deactivate")
    elif (
        int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or environment.get("CARE_JAX_DISTRIBUTED") == "auto"
    ):
        initialize()


def is_writer() -> bool:
    """Returns whether this process is the one of several that writes what all of them know."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line of progress on stderr, in one process of several."""
    if is_writer():
        print(text, file=sys.stderr, flush=True)


def barrier(name: str) -> None:
    """Waits until every process has reached this call; a single process does not wait."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def anywhere(value: bool) -> bool:
    """Returns whether the value is true in some process. All processes call it and wait for each other."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def to_host(x: jax.Array) -> np.ndarray:
    """Returns the complete array on this host, whichever processes hold its parts. All processes call this."""
    if getattr(x, "is_fully_addressable", True):
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


class Agreement:
    """Tells all processes in the same call what one of them knows (a signal, a time that has passed).

    A single process is answered at once. Several processes are answered with what was said one call earlier: the sum
    over processes runs while the devices work, so that nobody waits for it.
    """

    def __init__(self) -> None:
        self._pending: jax.Array | None = None

    def any(self, *values: bool) -> tuple[bool, ...]:
        """Returns for each value whether it was true in some process. Every call has the same number of values."""
        if jax.process_count() == 1:
            return values
        counts, self._pending = self._pending, _sum_over_processes(np.asarray(values, np.int32))
        return (False,) * len(values) if counts is None else tuple(bool(count) for count in np.asarray(counts))


def _sum_over_processes(values: np.ndarray) -> jax.Array:
    """Sums [n] int32 over processes, without waiting for the result."""
    first_devices = [min(jax.local_devices(process_index=p), key=lambda d: d.id) for p in range(jax.process_count())]
    mesh = Mesh(np.asarray(first_devices), ("process",))
    spread = NamedSharding(mesh, PartitionSpec("process"))
    values_per_process = jax.make_array_from_process_local_data(spread, values[None], (len(first_devices), len(values)))
    return jax.jit(_total, out_shardings=NamedSharding(mesh, PartitionSpec()))(values_per_process)


def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=0)
