"""When a run saves its state, and how it stops after a signal."""

import time

from care_jax.config import steps_of
from care_jax.distributed import say
from care_jax.stopping import Interrupted
from care_jax.textfiles import JsonObject
from care_jax.training.context import RunContext
from care_jax.training.run.metrics import Recorder
from care_jax.training.step import State


class SaveSchedule:
    """Saves after every so many steps or minutes, after a signal, and at the end.

    steps: number of steps of the run. meta: what a checkpoint holds besides the state.
    """

    def __init__(self, run: RunContext, recorder: Recorder, steps: int, meta: JsonObject):
        self._run, self._recorder, self._steps, self._meta = run, recorder, steps, meta
        every = run.config.checkpoint.every
        self._every = None if every is None else steps_of(every, steps)
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Returns whether to save after this step, which all processes decide alike: each calls it once per step."""
        self._run.checkpoints.poll()
        minutes = self._run.config.checkpoint.minutes
        late = self._run.stop.poll(minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes)
        at_interval = self._every is not None and step % self._every == 0
        return step == self._steps or late or self._run.stop.requested or at_interval

    def save(self, step: int, state: State, metrics: JsonObject | None) -> None:
        """Starts a save. metrics: results of an evaluation after this step, if there was one."""
        self._recorder.sync()  # metrics up to this step are on disk before the checkpoint commits
        self._run.checkpoints.save(step, state, self._meta, metrics)
        self._saved_at = time.monotonic()

    def stop_if_requested(self, step: int) -> None:
        """Raises Interrupted if a signal asked the run to stop, once the state of this step is saved."""
        stop, checkpoints = self._run.stop, self._run.checkpoints
        if not stop.requested:
            return
        seconds = checkpoints.last_save_seconds
        say(f"stopping after step {step}: saving" + (f", the last save took {seconds:.0f} s" if seconds else ""))
        checkpoints.wait()
        self._recorder.close()
        took = "" if stop.received_at is None else f" {time.monotonic() - stop.received_at:.0f} s after the signal"
        raise Interrupted(f"stopped at step {step} of {self._steps}{took}; saved: the same command resumes from there")
