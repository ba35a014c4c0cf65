"""What a plan is made for: a named TPU topology that is not here, or this machine's own backend."""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax

from care_jax import hardware
from care_jax.errors import UserError, nearest
from care_jax.hardware import CHIPS, Chip

# Generation -> libtpu's name of it.
GENERATIONS = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "7x": "tpu7x", "v7x": "tpu7x", "tpu7x": "tpu7x"}
# The machine of the same name in configs/machines: its topology, or the memory and the speed of its card.
MACHINES: dict[str, tuple[str | None, str | None]] = {
    "v5e-64": ("v5e:8x8", None),
    "v5p-16": ("v5p:2x2x2", None),
    "v5p-256": ("v5p:4x4x8", None),
    "h200": (None, "NVIDIA H200"),
    "gpu-80gb": (None, "NVIDIA H100 80GB HBM3"),
    "gpu-24gb": (None, "NVIDIA L4"),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """name: as it was asked for. devices: of the topology, or this machine's. memory: bytes a device, None: unknown.

    estimate: the temporaries are another backend's, as the card is not here.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    memory: int | None
    estimate: bool = False


def topology(name: str, memory: int | None = None) -> Target:
    """A TPU topology such as v5p:2x2x2 (chips along each axis). UserError for an unknown one, or without libtpu."""
    from jax.experimental import topologies

    generation, _, shape = name.partition(":")
    hint = "" if generation in GENERATIONS else nearest(generation, list(GENERATIONS))
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(
            f"--topology: found {name!r}{hint}, expected a generation of "
            f"{', '.join(GENERATIONS)} and chips along each axis, such as v5p:2x2x2"
        )
    # Nothing here touches a chip: a second process may load libtpu, and it need not look for the machine it is on.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    sizes = [int(size) for size in shape.split("x")]
    options: dict[str, Any] = {}
    if all(size == 1 for size in sizes):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # two cores as one device, as a v4 machine has it
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{GENERATIONS[generation]}:{shape}", **options
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        found = " ".join(str(error).split())
        if any(sign in found.lower() for sign in ("libtpu", "not found", "not installed", "unable to initialize")):
            raise UserError(
                f"--topology {name}: needs libtpu, which compiles for TPUs without one: "
                f'pip install "care-jax[plan]" ({found[:200]})'
            ) from error
        raise UserError(f"--topology {name}: {found[:300]}") from error
    devices: tuple[Any, ...] = tuple(described.devices)
    chip = CHIPS.get(devices[0].device_kind)
    return Target(name, devices, chip, memory or (chip.memory if chip else None), estimate=False)


def local(memory: int | None = None, card: str | None = None, count: int | None = None) -> Target:
    """This machine's devices; `memory`, `card` (jax's name of its kind) or `count`: for cards that are not here, one
    unless `count` says more.
    """
    absent = memory is not None or card is not None or count is not None
    hardware.claim_memory()
    devices = _stand_ins(1 if count is None else count) if absent else list(jax.devices())
    chip = CHIPS[card] if card is not None else None if absent else CHIPS.get(devices[0].device_kind)
    memory = _memory(devices[0], chip) if memory is None else memory
    shown = chip.name if card is not None and chip is not None else f"{(memory or 0) / 1e9:g} GB"
    shown = shown if absent else devices[0].device_kind
    return Target(shown, tuple(devices), chip, memory, estimate=absent)


def _stand_ins(count: int) -> list[Any]:
    """As many devices of this machine, or of its CPU, to compile for in another's place."""
    if count < 1:
        raise UserError(f"--devices: found {count}, expected 1 or more")
    if count > 1:
        with contextlib.suppress(RuntimeError):  # jax is up already, with as many devices as it has
            jax.config.update("jax_num_cpu_devices", count)
    devices: list[Any] = list(jax.devices())
    if len(devices) < count:
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS leaves the CPU out
            devices = list(jax.devices("cpu"))
    if len(devices) < count:
        raise UserError(f"--devices: found {count}, but jax was started with {len(devices)} to stand in for them")
    return devices[:count]


def _memory(device: Any, chip: Chip | None) -> int | None:
    """Bytes of one device of this process; None where the backend does not say.

    Of a CPU a part of what this machine has, or of what the container may have of it.
    """
    if chip is not None:
        return chip.memory
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return (min(memory, int(text)) if text.isdecimal() else memory) // jax.local_device_count()


def targets(
    machines: Sequence[str], topologies: Sequence[str], memory: int | None, count: int | None = None
) -> list[Target]:
    """What was asked for by name, else what the machine file of that name stands for, else this machine.

    count: of cards that are not here. Raises UserError where it comes with a topology, whose name says how many it has,
    or without anything that says what memory the cards have.
    """
    machine = next((one for one in reversed(machines) if one in MACHINES), "")
    shape, card = (None, None) if topologies or memory is not None else MACHINES.get(machine, (None, None))
    names = list(topologies) if shape is None else [shape]
    if names and count is not None:
        raise UserError(f"--devices: found {count} beside the topology {names[0]}, whose name says how many it has")
    if count is not None and memory is None and card is None:
        raise UserError(f"--devices: found {count} without their memory, expected --memory SIZE or a machine, as h200")
    return [topology(name, memory) for name in names] or [local(memory, card, count)]


def words(devices: Sequence[Any]) -> str:
    """What `care-jax plan` is given to mean these devices: of a whole job, where they are those of all processes."""
    chip = CHIPS.get(devices[0].device_kind)
    if devices[0].platform == "tpu":
        if chip is None:
            return "--topology NAME"
        generation = chip.name.removeprefix("TPU ")
        sizes = [1 + max(device.coords[axis] for device in devices) for axis in range(3)]
        flat = generation in ("v5e", "v6e")
        return f"--topology {generation}:" + "x".join(str(size) for size in (sizes[:2] if flat else sizes))
    memory = _memory(jax.local_devices()[0], chip)
    return f"--devices {len(devices)} --memory " + ("SIZE" if memory is None else f"{memory / 1e9:.4g}GB")


def parse_memory(text: str) -> int:
    """Bytes of 24GB or 22.5GiB. UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB)", text.strip())
    if found is None or float(found[1]) == 0:
        raise UserError(f"--memory: found {text!r}, expected such as 24GB or 22.5GiB")
    return int(float(found[1]) * (10**9 if found[2] == "GB" else 2**30))
