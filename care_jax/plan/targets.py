"""Targets of a plan: a TPU topology or cards that are not here, or this machine's own devices."""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

import jax

from care_jax import hardware
from care_jax.errors import UserError, nearest
from care_jax.hardware import CHIPS, Chip

# Generation -> libtpu's name for it.
GENERATIONS = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "7x": "tpu7x", "v7x": "tpu7x", "tpu7x": "tpu7x"}
# Machine file in configs/machines -> (its TPU topology, None) or (None, its card as jax names it).
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
    """What a plan is made for.

    name: as the user gave it. devices: the topology's, or this machine's in their place. memory: bytes per device, None
    if unknown. estimate: whether the card is not here; the temporaries are then those of this machine's compiler.
    """

    name: str
    devices: tuple[jax.Device, ...]
    chip: Chip | None
    memory: int | None
    estimate: bool = False


def topology(name: str, memory: int | None = None) -> Target:
    """Returns the target of a TPU topology such as v5p:2x2x2 (chips along each axis).

    Raises UserError if it is unknown or libtpu is not installed.
    """
    from jax.experimental import topologies

    generation, _, shape = name.partition(":")
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        hint = "" if generation in GENERATIONS else nearest(generation, list(GENERATIONS))
        raise UserError(
            f"--topology: found {name!r}{hint}, expected a generation of "
            f"{', '.join(GENERATIONS)} and chips along each axis, such as v5p:2x2x2"
        )
    # No chip is used here: let a second process load libtpu, and do not query the metadata of the machine.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    sizes = [int(size) for size in shape.split("x")]
    options: dict[str, object] = {}
    if all(size == 1 for size in sizes):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # two cores are one device, as on a v4 machine
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{GENERATIONS[generation]}:{shape}", **options
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())
        if any(sign in reason.lower() for sign in ("libtpu", "not found", "not installed", "unable to initialize")):
            raise UserError(
                f"--topology {name}: needs libtpu, which compiles for TPUs on any machine: "
                f'pip install "care-jax[plan]" ({reason[:200]})'
            ) from error
        raise UserError(f"--topology {name}: {reason[:300]}") from error
    devices: tuple[jax.Device, ...] = tuple(described.devices)
    chip = CHIPS.get(devices[0].device_kind)
    return Target(name, devices, chip, memory or (chip.memory if chip else None))


def local(memory: int | None = None, card: str | None = None, count: int | None = None) -> Target:
    """Returns the target of this machine's devices, or of cards that are not here if any argument is given.

    memory: bytes per card. card: its kind, as jax names it. count: number of cards, by default 1.
    """
    absent = memory is not None or card is not None or count is not None
    hardware.claim_memory()
    devices = _stand_ins(1 if count is None else count) if absent else list(jax.devices())
    chip = CHIPS[card] if card is not None else None if absent else CHIPS.get(devices[0].device_kind)
    memory = _memory(devices[0], chip) if memory is None else memory
    name = devices[0].device_kind if not absent else chip.name if chip is not None else f"{(memory or 0) / 1e9:g} GB"
    return Target(name, tuple(devices), chip, memory, estimate=absent)


def _stand_ins(count: int) -> list[jax.Device]:
    """Returns `count` devices of this machine, or of its CPU, to compile for in place of cards that are not here."""
    if count < 1:
        raise UserError(f"--devices: found {count}, expected 1 or more")
    if count > 1:
        with contextlib.suppress(RuntimeError):  # jax has started already, so its number of devices is fixed
            jax.config.update("jax_num_cpu_devices", count)
    devices = list(jax.devices())
    if len(devices) < count:
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS excludes the CPU
            devices = list(jax.devices("cpu"))
    if len(devices) < count:
        raise UserError(
            f"--devices: found {count}, but jax was started with {len(devices)} devices to use in their place"
        )
    return devices[:count]


def _memory(device: jax.Device, chip: Chip | None) -> int | None:
    """Returns the bytes of one device of this process; None if the backend does not report them.

    A CPU device has its share of the machine's memory, or of the container's limit if that is lower.
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
    """Returns the targets of `care-jax plan`: the topologies, else that of the last machine file, else this machine.

    count: number of cards that are not here. Raises UserError if it comes with a topology, whose name determines the
    number, or if the cards' memory is not known.
    """
    machine = next((name for name in reversed(machines) if name in MACHINES), "")
    shape, card = (None, None) if topologies or memory is not None else MACHINES.get(machine, (None, None))
    names = list(topologies) if shape is None else [shape]
    if names and count is not None:
        raise UserError(f"--devices: found {count} with the topology {names[0]}, whose name says how many it has")
    if count is not None and memory is None and card is None:
        raise UserError(f"--devices: found {count} without memory, expected --memory SIZE or a machine such as h200")
    return [topology(name, memory) for name in names] or [local(memory, card, count)]


def plan_options(devices: Sequence[jax.Device]) -> str:
    """Returns the options of `care-jax plan` that describe these devices, those of all processes of a job."""
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
    """Returns the bytes of a size such as 24GB or 22.5GiB. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--memory: found {text!r}, expected a size such as 24GB or 22.5GiB")
    return int(float(match[1]) * (10**9 if match[2] == "GB" else 2**30))
