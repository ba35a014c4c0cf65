"""When a run is evaluated, on its held-out questions and on tasks, and what it measured last."""

import json
import pathlib
import time
from typing import Any

from care_jax.config import Config, steps_of
from care_jax.distributed import is_writer
from care_jax.textfiles import read_lines, write_whole
from care_jax.training.data import Prepared
from care_jax.training.evaluation import held_out
from care_jax.training.evaluation.tasks import TaskScores
from care_jax.training.forward.passes import ForwardPass
from care_jax.training.forward.reference import Reference
from care_jax.training.objective import Objective
from care_jax.training.run.metrics import Recorder, json_value
from care_jax.training.step import State

HELD_OUT = "held_out.jsonl"  # each held-out question's accuracies, before training and at the end


class Evaluations:
    """Runs on what `data` holds out, if it holds out anything, and on `tasks`, if there are; records the numbers."""

    def __init__(
        self,
        config: Config,
        objective: Objective,
        data: Prepared,
        forward: ForwardPass,
        reference: Reference,
        recorder: Recorder,
        folder: pathlib.Path,
        tasks: TaskScores | None,
    ):
        self._objective, self._held_out, self._forward = objective, data.held_out, forward
        self._reference, self._recorder, self._total = reference, recorder, data.steps
        self._every = None if config.eval_every is None else steps_of(config.eval_every, data.steps)
        self._folder, self._tasks = folder, tasks
        self._last: tuple[int, dict[str, Any]] | None = None

    def due(self, step: int) -> bool:
        """After `step` updates: at the end, and every so many; where tasks are due, the held-out questions are too."""
        own = step == self._total or (self._every is not None and step % self._every == 0)
        return own or (self._tasks is not None and self._tasks.due(step))

    def missed(self, step: int) -> bool:
        """Whether a signal ended the run in the middle of the one that was due at `step`."""
        return self.due(step) and not any(
            line["step"] == step and "eval/wall_seconds" in line for line in self._recorder.lines
        )

    def run(self, step: int, state: State) -> None:
        """Raises Interrupted where a signal asks to stop."""
        began = time.perf_counter()
        found: dict[str, Any] = {}
        if self._held_out is not None:
            ref_logps = self._reference.logps(self._held_out.sequences)
            if step == 0 and self._reference.own and self._reference.precomputed and ref_logps is not None:
                logps = ref_logps  # the policy is still its own reference: the pass over it is the evaluation's
            else:
                logps = self._forward.run(self._held_out.sequences, state.variables())
            found = held_out.measure(self._objective, self._held_out, logps, ref_logps)
            if step in (0, self._total):
                lines = held_out.by_question(self._objective, self._held_out, logps, ref_logps)
                self._write(step, lines)
        if self._tasks is not None and self._tasks.due(step):
            found |= self._tasks.run(state)
        if found:
            self._last = step, found
            self._recorder.record_evaluation(step, found | {"eval/wall_seconds": time.perf_counter() - began})

    def _write(self, step: int, lines: list[dict[str, Any]]) -> None:
        path = self._folder / HELD_OUT
        if is_writer():
            kept = [line for line in read_lines(path) if line["step"] != step and step != 0]
            new = [{"step": step, **{name: json_value(value) for name, value in line.items()}} for line in lines]
            write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*kept, *new]))

    def of(self, step: int) -> dict[str, Any] | None:
        """What was measured after `step` updates, if anything was."""
        return self._last[1] if self._last is not None and self._last[0] == step else None
