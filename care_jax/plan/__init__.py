"""Will it fit? The programs of a run, compiled ahead of time for a machine that need not be here.

Nothing is read but the configuration and the model's config.json: no weights, no data. The train step, the pass of the
reference and that of the evaluation are the run's own, compiled from shapes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from care_jax import sharding
from care_jax.config import Config
from care_jax.hardware import MEMORY_FRACTION
from care_jax.models.arch import Arch
from care_jax.plan.known import arch_of
from care_jax.plan.programs import Program, compile_forward, compile_train
from care_jax.plan.shapes import Shapes, shapes
from care_jax.plan.targets import Target


@dataclasses.dataclass(frozen=True)
class Advice:
    """The nearest change that fits, found by compiling it.

    changes: overrides; None: nothing that was tried fits. program: the one that then needs most.
    """

    changes: tuple[str, ...] | None
    program: Program | None
    tried: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a configuration needs on a target. largest: the program that needs most."""

    config: Config
    target: Target
    mesh: dict[str, int]
    microbatches: int
    rows: int
    row_length: int
    programs: tuple[Program, ...]
    advice: Advice | None = None

    @property
    def largest(self) -> Program:
        return max(self.programs, key=lambda program: program.total)

    @property
    def fits(self) -> bool | None:
        """None where the target's memory is not known."""
        return None if self.target.memory is None else self.largest.total <= MEMORY_FRACTION * self.target.memory

    @property
    def ideal_seconds(self) -> float | None:
        """Of a step at the chips' peak."""
        chip = self.target.chip
        return None if chip is None else self.programs[0].flops / (chip.flops * len(self.target.devices))


Say = Callable[[str], None]


def prepare(config: Config, target: Target, arch: Arch | None = None) -> Shapes:
    """The shapes of a configuration on a target. Raises UserError where the mesh does not fit them."""
    arch = arch_of(config.model.path, config.model.revision) if arch is None else arch
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=target.devices)
    return shapes(config, arch, mesh, absent=target.estimate)


def plan(config: Config, target: Target, *, arch: Arch | None = None, advise: bool = True, say: Say = print) -> Plan:
    """Compiles the programs of a run for a target; where they do not fit, looks for the nearest change that does."""
    made = prepare(config, target, arch)
    train, _ = compile_train(made, say)
    programs = [train]
    if train.temporaries is not None:
        programs += compile_forward(made, say)
    layout = made.layout
    found = Plan(
        config,
        target,
        dict(made.mesh.shape),
        layout.microbatches,
        layout.rows,
        layout.row_length,
        tuple(programs),
    )
    if found.fits is False and advise:
        from care_jax.plan.advice import nearest_that_fits

        return dataclasses.replace(found, advice=nearest_that_fits(config, target, made.model.arch, say))
    return found


def compiled_step(config: Config, target: Target, say: Say = print) -> tuple[Shapes, Any]:
    """The shapes and the compiled train step themselves, for whoever reads its text."""
    made = prepare(config, target)
    return made, compile_train(made, say)[1]


__all__ = [
    "MEMORY_FRACTION", "Advice", "Plan", "Program", "Target",
    "compile_forward", "compile_train", "compiled_step", "plan", "prepare",
]  # fmt: skip
