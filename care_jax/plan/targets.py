"""What a plan is made for: a named TPU topology that is not here, or this machine's own backend."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from care_jax.errors import UserError, nearest
from care_jax.training.chips import CHIPS, Chip

# Generation -> libtpu's name of it.
GENERATIONS = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "7x": "tpu7x", "v7x": "tpu7x", "tpu7x": "tpu7x"}
# The machine of the same name in configs/machines: its topology, or the memory of its one card and that card's speed.
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
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(
            f"--topology: found {name!r}{nearest(generation, list(GENERATIONS))}, expected a generation of "
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
        if "libtpu" in found or "not found" in found.lower() or "Unable to initialize" in found:
            raise UserError(
                f"--topology {name}: needs libtpu, which compiles for TPUs without one: "
                f'pip install "care-jax[plan]" ({found[:200]})'
            ) from error
        raise UserError(f"--topology {name}: {found[:300]}") from error
    devices: tuple[Any, ...] = tuple(described.devices)
    chip = CHIPS.get(devices[0].device_kind)
    return Target(name, devices, chip, memory or (chip.memory if chip else None), estimate=False)


def local(memory: int | None = None, card: str | None = None) -> Target:
    """This machine's devices; `memory` or `card` (jax's name of its kind): for one card that is not here."""
    devices: list[Any] = list(jax.devices())
    absent = memory is not None or card is not None
    chip = CHIPS[card] if card is not None else None if absent else CHIPS.get(devices[0].device_kind)
    if memory is None:
        memory = chip.memory if chip is not None else (devices[0].memory_stats() or {}).get("bytes_limit")
    shown = chip.name if card is not None and chip is not None else f"{(memory or 0) / 1e9:g} GB"
    shown = shown if absent else devices[0].device_kind
    return Target(shown, tuple(devices[:1] if absent else devices), chip, memory, estimate=absent)


def targets(machines: Sequence[str], topologies: Sequence[str], memory: int | None) -> list[Target]:
    """What was asked for by name, else what the machine file of that name stands for, else this machine."""
    if topologies:
        return [topology(name, memory) for name in topologies]
    if memory is None:
        for machine in reversed(machines):
            if machine in MACHINES:
                shape, card = MACHINES[machine]
                return [topology(shape) if shape is not None else local(card=card)]
    return [local(memory)]


def parse_memory(text: str) -> int:
    """Bytes of 24GB or 22.5GiB. UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB)", text.strip())
    if found is None:
        raise UserError(f"--memory: found {text!r}, expected such as 24GB or 22.5GiB")
    return int(float(found[1]) * (10**9 if found[2] == "GB" else 2**30))
