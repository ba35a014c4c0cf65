"""Whether a start goes on where an earlier one stopped, and what may have changed in between."""

import dataclasses
import datetime
import pathlib
from typing import Any

import jax

from care_jax import config as configs
from care_jax import distributed
from care_jax.config import Config
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.textfiles import write_whole
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import writing_in
from care_jax.training.run.identity import Identity


@dataclasses.dataclass(frozen=True)
class Start:
    """config: with the template's date of the first start. step: of the checkpoint to go on from, or None; meta: what
    that holds beside the state. repeats: what a manifest says that the run must read, and the manifest.
    """

    config: Config
    step: int | None
    meta: dict[str, Any]
    repeats: tuple[Identity, str] | None = None

    def check(self, found: Identity) -> None:
        """Raises UserError where what is read now is not what the run before read."""
        if self.repeats is not None:
            _same(*self.repeats, found)
        if self.step is not None:
            before = Identity(**self.meta["identity"])
            _same(before, f"{self.config.output_dir} holds a run, saved at step {self.step}, that", found)


def open_run(
    config: Config,
    folder: pathlib.Path,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    repeats: tuple[Identity, str] | None = None,
) -> Start:
    """Enters a run directory; what came to no checkpoint is started anew.

    Raises UserError where it holds checkpoints of a run whose maths differ, naming the keys, and where `resume` asks
    for what is not there.
    """
    begun = bool(checkpoints.steps())
    if config.resume == "never" and begun:
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
        _may_go_on(before, config)
        _say_what_rounds(before, config, meta["where"], numerics_environment(mesh), step)
    distributed.barrier("run directory read")  # by all, before one of them writes there
    if is_writer():
        with writing_in(config.output_dir):
            write_whole(stored, configs.dump(config))
    return Start(config, step, meta, repeats)


def numerics_environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What a run's roundings depend on beside its configuration."""
    return {
        "devices": mesh.size,
        "kind": jax.devices()[0].device_kind,
        "mesh": " x ".join(str(size) for size in mesh.shape.values()),
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }


def _may_go_on(before: Config, config: Config) -> None:
    different = configs.differences(before, config)
    if different:
        shown = "; ".join(f"{key}: {old!r} then, {new!r} now" for key, (old, new) in different.items())
        raise UserError(
            f"{config.output_dir} holds a run that differs in what changes its numbers: {shown}. "
            "Choose another output_dir"
        )


def _say_what_rounds(before: Config, config: Config, then: dict[str, Any], now: dict[str, Any], step: int) -> None:
    """Sums taken in another order give the same numbers to rounding, and no longer to the bit."""
    changed = {key: (then.get(key), value) for key, value in now.items() if then.get(key) != value}
    changed |= configs.rounding_differences(before, config)
    if changed:
        shown = "; ".join(f"{key}: {old} then, {new} now" for key, (old, new) in changed.items())
        say(f"bitwise equality with an uninterrupted run ends at step {step}: {shown}")


def _same(before: Identity, whose: str, found: Identity) -> None:
    different = before.differences(found)
    if different:
        raise UserError(f"{whose} read something else: {'; '.join(different)}")
