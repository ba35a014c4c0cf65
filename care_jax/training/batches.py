"""The batches of a run's steps: threads on the host make them ahead, then they are placed on the devices."""

import dataclasses
import time

from care_jax.data import pipeline
from care_jax.data.packing.batch import Batch
from care_jax.data.packing.plans import StepPlan
from care_jax.errors import UserError
from care_jax.training import placement
from care_jax.training.checks.alarms import mean_chosen_tokens
from care_jax.training.context import RunContext
from care_jax.training.data import RunData
from care_jax.training.errors import RunFailed
from care_jax.training.forward.reference import Reference
from care_jax.training.run.metrics import Recorder


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """The batch of one step: its arrays on the devices, and what the log says about it.

    counts: tokens, pairs, packing_efficiency and, for a loss with `kl`, mismatched_tokens. chosen_tokens: the mean
    completion tokens of the chosen responses.
    """

    step: int
    arrays: Batch
    counts: dict[str, int | float]
    chosen_tokens: float


class BatchSupply:
    """Gives the batches of the steps `first` to `last`, in order. The recorder learns how long the loop waited."""

    def __init__(self, run: RunContext, data: RunData, reference: Reference, recorder: Recorder, first: int):
        self.first, self.last = first, data.steps
        self._run, self._reference, self._recorder = run, reference, recorder
        self._rows = run.config.batch.microbatch_rows
        host_batches = pipeline.steps(
            data.source,
            first - 1,
            data.steps,
            rows=placement.rows_of_this_process(run.mesh, self._rows),
            ref_logps=reference.lookup if reference.precomputed else None,
        )
        self._host_batches = iter(host_batches)
        self._step = first - 1  # of the latest batch from the host
        host_batch, plan = self._from_host()
        self.shardings = placement.batch_shardings(host_batch, run.mesh)
        self._first_batch: StepBatch | None = self._place(host_batch, plan)

    def peek(self) -> Batch:
        """Returns the arrays of the first batch, before it is taken."""
        assert self._first_batch is not None
        return self._first_batch.arrays

    def __next__(self) -> StepBatch:
        """Raises RunFailed if the thread that made the batch failed."""
        if self._first_batch is not None:
            batch, self._first_batch = self._first_batch, None
            return batch
        began = time.perf_counter()
        host_batch, plan = self._from_host()
        self._recorder.record_input_wait(time.perf_counter() - began)
        return self._place(host_batch, plan)

    def _from_host(self) -> tuple[Batch, StepPlan]:
        """Returns the next step's batch as NumPy arrays, with the rows of this process, and its plan."""
        self._step += 1
        try:
            _, batch, plan = next(self._host_batches)
            return batch, plan
        except (UserError, OSError):  # their messages say enough
            raise
        except Exception as error:
            raise RunFailed(
                f"the batch of step {self._step} could not be made: {type(error).__name__}: {error}; "
                f"{self._run.checkpoints.resume_hint()}"
            ) from error

    def _place(self, host_batch: Batch, plan: StepPlan) -> StepBatch:
        arrays = self._reference.add_logps(placement.to_devices(host_batch, self.shardings, self._rows))
        return StepBatch(self._step, arrays, _counts(plan), mean_chosen_tokens(self._run.objective.view, host_batch))


def _counts(plan: StepPlan) -> dict[str, int | float]:
    """Returns what a step's line of metrics.jsonl says about its batch."""
    counts = {"tokens": plan.tokens, "pairs": len(plan.pairs), "packing_efficiency": round(plan.efficiency, 6)}
    if plan.mismatched is not None:
        counts["tokens"] += plan.mismatched.tokens
        counts["mismatched_tokens"] = plan.mismatched.tokens
    return counts
