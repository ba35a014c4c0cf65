"""What the parts of a run share."""

import dataclasses

from jax.sharding import Mesh

from care_jax.config import Config
from care_jax.stopping import StopSignal
from care_jax.training.objective import Objective
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class RunContext:
    """A run as this process executes it. directory: its files; stop: the signal that all long work polls."""

    config: Config
    objective: Objective
    mesh: Mesh
    directory: RunDirectory
    checkpoints: Checkpoints
    stop: StopSignal
