"""Explains a step whose loss or gradient was not finite, and ends the run after too many of them."""

import contextlib
import json

import numpy as np

from care_jax.distributed import is_writer, say
from care_jax.models.decoder import Decoder
from care_jax.training.batches import StepBatch
from care_jax.training.checks.nonfinite import Diagnosis
from care_jax.training.context import RunContext
from care_jax.training.data import RunData
from care_jax.training.errors import Diverged, RunFailed
from care_jax.training.step import State

_QUESTIONS_SHOWN = 8  # per step, in a message


class SkippedUpdates:
    """Names the step, the tensor and the questions of updates that were skipped."""

    def __init__(self, run: RunContext, model: Decoder, data: RunData):
        self._run, self._data = run, data
        self._diagnosis = Diagnosis(model, run.objective)

    def report(self, batch: StepBatch, in_a_row: int, kl: float, state: State) -> None:
        """Says what was not finite, and writes it to nonfinite.jsonl. Raises Diverged if it was one too many.

        in_a_row: skipped updates up to this one; kl: of the step; state: that after the step.
        """
        finding = self._diagnosis.first_nonfinite(state, batch.arrays, kl)
        questions = self._questions(batch.step)
        culprit = None if finding.place is None else self._question_at(batch.step, *finding.place)
        if culprit is not None:
            questions = [culprit, *(key for key in questions if key != culprit)]
        shown = ", ".join(repr(key[:60]) for key in questions[:_QUESTIONS_SHOWN])
        more = f" and {len(questions) - _QUESTIONS_SHOWN} more" if len(questions) > _QUESTIONS_SHOWN else ""
        say(
            f"step {batch.step}: loss or gradient not finite, update skipped ({in_a_row} in a row). First non-finite "
            f"tensor: {finding.tensor}{'' if culprit is None else f', in {culprit[:60]!r}'}. "
            f"Questions of the step: {shown}{more}"
        )
        if is_writer():
            line = {"step": batch.step, "tensor": finding.tensor, "in": culprit, "questions": questions}
            with (self._run.directory.folder / "nonfinite.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if in_a_row >= self._run.config.nonfinite.max_consecutive:
            with contextlib.suppress(RunFailed):  # it was reported before, and the run ends for another reason
                self._run.checkpoints.wait()
            raise Diverged(
                f"step {batch.step}: {in_a_row} updates in a row were not finite (nonfinite.max_consecutive); first "
                f"non-finite tensor: {finding.tensor}; {self._run.checkpoints.resume_hint()}"
            )

    def _questions(self, step: int) -> list[str]:
        """Returns the keys of a step's questions."""
        units = self._data.source.units(step - 1)
        return list(dict.fromkeys(self._data.corpus.key(unit.question) for unit in units))

    def _question_at(self, step: int, microbatch: int, slot: int) -> str:
        """Returns the key of the question whose response has this slot of a microbatch."""
        data = self._data
        plan = data.source.plan(step - 1)
        placed = plan.responses
        responses = np.flatnonzero((placed.microbatch == microbatch) & (placed.slot == slot))
        return data.corpus.key(int(placed.question[responses[0]]))
