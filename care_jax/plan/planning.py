"""A plan: what each program of a run needs on a target, and the nearest change that fits if it does not fit.

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

    microbatches: per step. rows, row_length: of a microbatch, in rows and in tokens.
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
    """Compiles the programs of a run for a target; with `advise`, also looks for a change that fits if they do not.

    Raises UserError if the mesh does not divide the model or the batch.
    """
    shapes = shapes_of(config, target)
    train, _ = compile_train(shapes, say)
    programs = [train]
    if train.temporaries is not None:
        programs += compile_forward(shapes, say)
    shape = shapes.batch_shape
    result = Plan(
        config,
        target,
        dict(shapes.mesh.shape),
        shape.microbatches,
        shape.rows,
        shape.row_length,
        tuple(programs),
    )
    if result.fits is False and advise:
        return dataclasses.replace(result, advice=nearest_that_fits(config, target, shapes.trained.model.arch, say))
    return result
