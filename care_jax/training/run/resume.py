"""Decides whether a run is new or resumes from a checkpoint, and refuses if what determines its numbers has changed.

First the configurations are compared (`config/compare.py`), then what the run reads (`identity.py`).
"""

import dataclasses
import datetime
import pathlib

import jax

from care_jax import config as configs
from care_jax import distributed
from care_jax.config import Config
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject, write_whole
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import writing_in
from care_jax.training.run.identity import Identity


@dataclasses.dataclass(frozen=True)
class Start:
    """How a run starts, new or resumed.

    config: the configuration, with the chat template's date of the new run. step: step of the checkpoint to resume
    from, None if the run is new. meta: the JSON of that checkpoint. expected: for a run by manifest, the identity that
    it must have, and the name of the manifest's run for the message.
    """

    config: Config
    step: int | None
    meta: JsonObject
    expected: tuple[Identity, str] | None = None

    def check(self, now: Identity) -> None:
        """Raises UserError if the earlier run (or the manifest's) read something else."""
        if self.expected is not None:
            _check_same(*self.expected, now)
        if self.step is not None:
            subject = f"{self.config.output_dir} holds a run, saved at step {self.step}, that"
            _check_same(Identity(**self.meta["identity"]), subject, now)


def open_run(
    config: Config,
    folder: pathlib.Path,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    expected: tuple[Identity, str] | None = None,
) -> Start:
    """Finds the checkpoint to resume from, writes config.yaml into the run directory, and returns how the run starts.

    A run that was stopped before its first checkpoint starts again. Raises UserError if the directory holds checkpoints
    of a run with other mathematics (the message names the keys), or if it does not hold what `resume` requires.
    """
    if config.resume == "never" and checkpoints.steps():
        raise UserError(f"resume: never, but {config.output_dir} holds checkpoints already; choose another output_dir")
    step = checkpoints.latest()
    if config.resume == "must" and step is None:
        raise UserError(f"resume: must, but {config.output_dir} holds no checkpoint")
    meta = {} if step is None else checkpoints.meta(step)
    stored = folder / "config.yaml"
    before = configs.parse(meta["config"]) if meta else configs.load(stored) if stored.exists() else None
    if config.data.template_date is None:
        date = datetime.date.today().isoformat() if before is None else before.data.template_date
        config = configs.with_template_date(config, date)
    if step is not None:
        assert before is not None
        if different := configs.refusing_differences(before, config):
            keys = "; ".join(f"{key}: {old!r} then, {new!r} now" for key, (old, new) in different.items())
            raise UserError(
                f"{config.output_dir} holds a run that differs in what changes its numbers: "
                f"{keys}. Choose another output_dir"
            )
        _say_rounding_differences(before, config, meta["where"], numerics_environment(mesh), step)
    distributed.barrier("run directory read")  # all processes read it before one of them writes there
    if is_writer():
        with writing_in(config.output_dir):
            write_whole(stored, configs.dump(config))
    return Start(config, step, meta, expected)


def numerics_environment(mesh: jax.sharding.Mesh) -> JsonObject:
    """Returns what the rounding of a run's numbers depends on besides its configuration."""
    return {
        "devices": mesh.size,
        "kind": jax.devices()[0].device_kind,
        "mesh": " x ".join(str(size) for size in mesh.shape.values()),
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }


def _say_rounding_differences(before: Config, config: Config, then: JsonObject, now: JsonObject, step: int) -> None:
    """Says what changes the order of sums: the numbers stay equal up to rounding, but not bit for bit."""
    changed = {key: (then.get(key), value) for key, value in now.items() if then.get(key) != value}
    changed |= configs.rounding_differences(before, config)
    if changed:
        keys = "; ".join(f"{key}: {old} then, {new} now" for key, (old, new) in changed.items())
        say(f"bitwise equality with an uninterrupted run ends at step {step}: {keys}")


def _check_same(before: Identity, subject: str, now: Identity) -> None:
    """Raises UserError if two identities differ. subject: the run of `before`, for the message."""
    if different := before.differences(now):
        raise UserError(f"{subject} read something else: {'; '.join(different)}")
