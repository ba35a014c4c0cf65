"""When a run is evaluated on its held-out questions, and what it measured last."""

import time
from typing import Any

from care_jax.config import Config, steps_of
from care_jax.training import evaluate
from care_jax.training.datasets import Prepared
from care_jax.training.forward import ForwardPass
from care_jax.training.frozen import Frozen
from care_jax.training.objective import Objective
from care_jax.training.step import State
from care_jax.training.trackers import Recorder


class Evaluations:
    """Runs on what `data` holds out, if it holds out anything, and records the numbers."""

    def __init__(
        self,
        config: Config,
        objective: Objective,
        data: Prepared,
        forward: ForwardPass,
        reference: Frozen,
        recorder: Recorder,
    ):
        self._objective, self._held_out, self._forward = objective, data.held_out, forward
        self._reference, self._recorder, self._total = reference, recorder, data.steps
        self._every = None if config.eval_every is None else steps_of(config.eval_every, data.steps)
        self._last: tuple[int, dict[str, Any]] | None = None

    def due(self, step: int) -> bool:
        """After `step` updates: at the end, and every so many."""
        return step == self._total or (self._every is not None and step % self._every == 0)

    def missed(self, step: int) -> bool:
        """Whether a signal ended the run in the middle of the one that was due at `step`."""
        return self.due(step) and not any(line["step"] == step and "eval/loss" in line for line in self._recorder.lines)

    def run(self, step: int, state: State) -> None:
        """Raises Interrupted where a signal asks to stop."""
        if self._held_out is None:
            return
        began = time.perf_counter()
        ref_logps = self._reference.logps(self._held_out.sequences)
        if step == 0 and self._reference.own and self._reference.precomputed and ref_logps is not None:
            logps = ref_logps  # the policy is still its own reference: the pass over it is the evaluation's
        else:
            logps = self._forward.run(self._held_out.sequences, state.variables())
        found = evaluate.measure(self._objective, self._held_out, logps, ref_logps)
        self._last = step, found
        self._recorder.evaluation(step, found | {"eval/wall_seconds": time.perf_counter() - began})

    def of(self, step: int) -> dict[str, Any] | None:
        """What was measured after `step` updates, if anything was."""
        return self._last[1] if self._last is not None and self._last[0] == step else None
