"""Records the steps of a run, each one only after the next was dispatched, so that the devices never wait."""

import dataclasses
import time

import jax
import numpy as np

from care_jax import models
from care_jax.distributed import say
from care_jax.training.batches import StepBatch
from care_jax.training.checks import before_start
from care_jax.training.checks.alarms import Alarms
from care_jax.training.checks.nonfinite import SkippedUpdates
from care_jax.training.context import RunContext
from care_jax.training.data import RunData
from care_jax.training.forward.reference import Reference
from care_jax.training.objective import LOG_RATIO
from care_jax.training.run.metrics import Recorder
from care_jax.training.run.profile import Trace
from care_jax.training.state import TrainingSetup
from care_jax.training.step import State


@dataclasses.dataclass(frozen=True)
class PendingStep:
    """A step that was dispatched and is not recorded yet. dispatched: time of the dispatch (time.perf_counter)."""

    batch: StepBatch
    metrics: dict[str, jax.Array]
    dispatched: float


class StepRecords:
    """Fetches the metrics of each step, records them, and looks for what went wrong; traces the profiled steps.

    As a context manager it ends the trace, however the run ends.
    """

    def __init__(self, run: RunContext, setup: TrainingSetup, data: RunData, reference: Reference, recorder: Recorder):
        self._run, self._schedule, self._recorder = run, setup.schedule, recorder
        self._starts_at_reference = reference.needed and reference.is_initial_policy
        self._parameters = models.num_params(setup.model.arch)
        self._skipped = SkippedUpdates(run, setup.model, data)
        self._alarms = Alarms()
        self._trace = Trace(run.config.profile, run.directory.folder / "profile", data.steps)
        self._began = 0.0
        self._pending: PendingStep | None = None

    def __enter__(self) -> "StepRecords":
        self._recorder.start_clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._trace.stop()

    def begin(self, step: int) -> None:
        """Notes that this step is dispatched next."""
        self._trace.start_if_due(step)
        self._began = time.perf_counter()

    def add(self, batch: StepBatch, metrics: dict[str, jax.Array], state: State) -> None:
        """Takes the step just dispatched, and records the one before. state: the state after the new step."""
        self.flush(state)
        self._pending = PendingStep(batch, metrics, self._began)
        if self._trace.is_last(batch.step):
            self.flush(state)
            self._trace.stop()

    def flush(self, state: State) -> None:
        """Waits for the pending step and records it. Raises Diverged if too many steps in a row were not finite."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        batch, step = pending.batch, pending.batch.step
        jax.block_until_ready(pending.metrics)
        # Includes the rest of the step that was running when this one was dispatched. A signal may find the devices in
        # the same situation, so the estimate includes it too.
        seconds = time.perf_counter() - pending.dispatched
        self._run.stop.estimate_stop(seconds, self._run.checkpoints.last_save_seconds)
        values = {name: np.asarray(value).item() for name, value in jax.device_get(pending.metrics).items()}
        skipped = int(values.pop("skipped"))
        log_ratio = values.pop(LOG_RATIO, 0.0)
        values["learning_rate"] = float(self._schedule(step - 1))
        self._recorder.record_step(step, values, batch.counts, self._flops(batch), pending.dispatched)
        if skipped:
            self._skipped.report(batch, skipped, values.get("kl", 0.0), state)
        elif step == 1 and self._starts_at_reference:
            dtype = self._run.config.model.dtype
            before_start.check_first_step(values, log_ratio, dtype, self._run.objective, batch.arrays)
        for text in self._alarms.check(step, values, batch.chosen_tokens):
            say(text)

    def _flops(self, batch: StepBatch) -> float:
        """Returns the flops of a step: 2 N per token and pass, with N parameters. The backward counts as two passes,
        or as one with LoRA, whose frozen weights have no gradient. What remat computes again is not counted.
        """
        passes = 2 if self._run.config.model.lora else 3
        forward_only = batch.counts.get("mismatched_tokens", 0)
        return 2.0 * self._parameters * (passes * (batch.counts["tokens"] - forward_only) + forward_only)
