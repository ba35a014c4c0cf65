"""A plan: what each program of a run needs on a target; if it does not fit, the nearest change that does.

Only the configuration and the model's config.json are read, no weights and no data. The programs are the run's own
(train step, reference pass, evaluation pass), compiled from shapes.
"""

import dataclasses

from care_jax.config import Config
from care_jax.hardware import MEMORY_FRACTION
from care_jax.plan.advice import Advice, nearest_that_fits
from care_jax.plan.programs import Program, Say, compile_forward, compile_train
from care_jax.plan.shapes import shapes_of
from care_jax.plan.targets import Target


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a configuration needs on a target.

    microbatches: per step. rows: per microbatch, over all devices. row_length: tokens per row.
    """

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
        """The program that needs the most memory."""
        return max(self.programs, key=lambda program: program.total)

    @property
    def fits(self) -> bool | None:
        """Whether every program fits; None if the target's memory is not known."""
        return None if self.target.memory is None else self.largest.total <= MEMORY_FRACTION * self.target.memory

    @property
    def ideal_seconds(self) -> float | None:
        """Seconds per step at the chips' peak speed; None if the chip is not known."""
        chip = self.target.chip
        return None if chip is None else self.programs[0].flops / (chip.flops * len(self.target.devices))


def plan(config: Config, target: Target, *, advise: bool = True, say: Say = print) -> Plan:
    """Compiles the programs of a run for a target. If they do not fit, `advise` looks for a change that does.

    Raises UserError if the mesh does not divide the model or the batch.
    """
    shapes = shapes_of(config, target)
    train, _ = compile_train(shapes, say)
    programs = [train]
    if train.temporaries is not None:
        programs += compile_forward(shapes, say)
    shape, mesh = shapes.batch_shape, dict(shapes.mesh.shape)
    result = Plan(config, target, mesh, shape.microbatches, shape.rows, shape.row_length, tuple(programs))
    if result.fits is False and advise:
        return dataclasses.replace(result, advice=nearest_that_fits(config, target, shapes.setup.model.arch, say))
    return result
