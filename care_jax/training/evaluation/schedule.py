"""When a run is evaluated, on its held-out questions and on tasks, and what it measured last."""

import pathlib
import time

from care_jax.config import steps_of
from care_jax.distributed import is_writer
from care_jax.textfiles import JsonObject, read_lines, write_lines
from care_jax.training.context import RunContext
from care_jax.training.data import RunData
from care_jax.training.evaluation import held_out
from care_jax.training.evaluation.tasks import TaskScores
from care_jax.training.forward.reference import Reference
from care_jax.training.run.metrics import Recorder, json_value
from care_jax.training.step import State

HELD_OUT = "held_out.jsonl"  # the accuracies of each held-out question, before training and at the end


class EvaluationSchedule:
    """Evaluates on the held-out questions and the tasks, if there are any, and records the numbers."""

    def __init__(
        self, run: RunContext, data: RunData, reference: Reference, recorder: Recorder, tasks: TaskScores | None
    ):
        self._objective, self._folder = run.objective, run.directory.folder
        self._held_out, self._steps = data.held_out, data.steps
        self._reference, self._recorder, self._tasks = reference, recorder, tasks
        every = run.config.eval_every
        self._every = None if every is None else steps_of(every, data.steps)
        self._last: tuple[int, JsonObject] | None = None

    def due(self, step: int) -> bool:
        """Returns whether to evaluate after this step: at the end, every so many steps, and whenever tasks are due."""
        at_interval = self._every is not None and step % self._every == 0
        return step == self._steps or at_interval or (self._tasks is not None and self._tasks.due(step))

    def missed(self, step: int) -> bool:
        """Returns whether a signal interrupted the evaluation that was due after this step."""
        lines = [line for line in self._recorder.lines if line["step"] == step]
        return self.due(step) and not any("eval/wall_seconds" in line for line in lines)

    def run(self, step: int, state: State) -> None:
        """Evaluates and records. Raises Interrupted if a signal asks to stop."""
        began = time.perf_counter()
        metrics: JsonObject = {}
        if self._held_out is not None:
            metrics |= self._measure(self._held_out, step, state)
        if self._tasks is not None and self._tasks.due(step):
            metrics |= self._tasks.run(state)
        if metrics:
            self._last = step, metrics
            self._recorder.record_evaluation(step, metrics | {"eval/wall_seconds": time.perf_counter() - began})

    def metrics_after(self, step: int) -> JsonObject | None:
        """Returns what was measured after this step, or None."""
        return self._last[1] if self._last is not None and self._last[0] == step else None

    def _measure(self, questions: held_out.HeldOut, step: int, state: State) -> JsonObject:
        ref_logps = self._reference.logps_of(questions.sequences)
        if step == 0 and self._reference.is_initial_policy and self._reference.precomputed and ref_logps is not None:
            logps = ref_logps  # the policy is still its own reference, whose pass has run already
        else:
            logps = self._reference.forward.run(questions.sequences, state.variables())
        if step in (0, self._steps):
            lines = held_out.by_question(self._objective, questions, logps, ref_logps)
            _write(self._folder / HELD_OUT, step, lines)
        return held_out.measure(self._objective, questions, logps, ref_logps)


def _write(path: pathlib.Path, step: int, lines: list[JsonObject]) -> None:
    """Replaces the lines of this step; those of step 0 begin the file anew."""
    if is_writer():
        kept = [line for line in read_lines(path) if line["step"] != step and step != 0]
        new = [{"step": step, **{name: json_value(value) for name, value in line.items()}} for line in lines]
        write_lines(path, [*kept, *new])
