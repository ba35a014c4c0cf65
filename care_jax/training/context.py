"""What the parts of a run share: its configuration, objective, mesh, files and stop signal."""

import dataclasses

from jax.sharding import Mesh

from care_jax.config import Config
from care_jax.stopping import StopSignal
from care_jax.training.objective import Objective
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class RunContext:
    """One start of a run. directory: where its files are; stop: whether a signal has requested a stop."""

    config: Config
    objective: Objective
    mesh: Mesh
    directory: RunDirectory
    checkpoints: Checkpoints
    stop: StopSignal
