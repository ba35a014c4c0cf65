"""Steps whose loss or gradient was not finite: which tensor was the first, in which question, and when to give up.

The first tensor is found with programs of their own, which run only after such a step. They follow the order in which a
step computes: weights, hidden states layer by layer, log-probabilities, loss, and then the gradient from the head down.
They run with the weights that the loop holds at that moment: after a skipped update those of the step itself, unless
the next update has been applied already.
"""

import contextlib
import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from care_jax.data.packing.batch import Batch
from care_jax.distributed import is_writer, say
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder
from care_jax.textfiles import dump_line
from care_jax.training import objective as objectives
from care_jax.training.batches import StepBatch
from care_jax.training.context import RunContext
from care_jax.training.data import RunData
from care_jax.training.errors import Diverged, RunFailed
from care_jax.training.objective import Objective
from care_jax.training.step import State, Variables, make_logps, microbatch_of, response_logps

_Path: TypeAlias = tuple[object, ...]  # keys of a tree, from the root to a leaf
_QUESTIONS_SHOWN = 8  # per step, in a message


class SkippedUpdates:
    """Names the step, the tensor and the questions of updates that were skipped."""

    def __init__(self, run: RunContext, model: Decoder, data: RunData):
        self._run, self._data = run, data
        self._diagnosis = Diagnosis(model, run.objective)

    def report(self, batch: StepBatch, in_a_row: int, kl: float, state: State) -> None:
        """Reports what was not finite, and writes it to nonfinite.jsonl.

        in_a_row: skipped updates up to this one; kl: the step's KL term; state: the state after the step. Raises
        Diverged if `in_a_row` has reached nonfinite.max_consecutive.
        """
        finding = self._diagnosis.first_nonfinite(state, batch.arrays, kl)
        units = self._data.source.units(batch.step - 1)
        questions = list(dict.fromkeys(self._data.corpus.key(unit.question) for unit in units))
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
                file.write(dump_line(line))
        if in_a_row >= self._run.config.nonfinite.max_consecutive:
            with contextlib.suppress(RunFailed):  # it was reported before, and the run ends for another reason
                self._run.checkpoints.wait()
            raise Diverged(
                f"step {batch.step}: {in_a_row} updates in a row were not finite (nonfinite.max_consecutive); first "
                f"non-finite tensor: {finding.tensor}; {self._run.checkpoints.resume_hint()}"
            )

    def _question_at(self, step: int, microbatch: int, slot: int) -> str:
        """Returns the key of the question whose response has this slot of a microbatch."""
        placed = self._data.source.plan(step - 1).responses
        responses = np.flatnonzero((placed.microbatch == microbatch) & (placed.slot == slot))
        return self._data.corpus.key(int(placed.question[responses[0]]))


@dataclasses.dataclass(frozen=True)
class Finding:
    """tensor: its name for a message. place: (microbatch, slot) of the response that it belongs to, or None."""

    tensor: str
    place: tuple[int, int] | None = None


class Diagnosis:
    """Finds the first tensor of a step that is not finite. Its programs are compiled at the first call."""

    def __init__(self, model: Decoder, objective: Objective):
        self._model, self._objective = model, objective
        self._logps = jax.jit(make_logps(model))
        self._microbatch_gradient = jax.jit(self._loss_and_gradient)

    def first_nonfinite(self, state: State, batch: Batch, kl: float) -> Finding:
        """Returns the first tensor that is not finite.

        batch: the step's arrays on the devices. kl: KTO's z0 of the step, if the loss names it.
        """
        finite = jax.tree_util.tree_leaves_with_path(_finite_leaves(state.variables()))
        if weights := [_name(path) for path, is_finite in finite if not is_finite]:
            return Finding(f"the weight {weights[0]}")
        if places := _nonfinite_places(np.asarray(batch.ref_logps), batch):
            return Finding("the reference's log-probability of a response", places[0])
        logps = np.asarray(self._logps(state.variables(), dataclasses.replace(batch, mismatched=None)))
        if places := _nonfinite_places(logps, batch):
            return Finding(self._first_layer(state, batch, places[0]), places[0])
        other = batch.mismatched
        if other is not None and _nonfinite_places(np.asarray(self._logps(state.variables(), other)), other):
            return Finding("the log-probability of a mismatched completion (of the KL term)")
        return self._in_gradient(state, batch, kl)

    def _first_layer(self, state: State, batch: Batch, place: tuple[int, int]) -> str:
        """Finds, by bisection, the first layer after which the microbatch of a response is not finite."""
        low, high = 0, self._model.arch.layers
        microbatch = microbatch_of(batch, place[0])
        if self._is_finite_after(high, state, microbatch):
            return "a response's log-probability (the hidden states are finite, its logits are not)"
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._is_finite_after(middle, state, microbatch) else (low, middle)
        return f"the hidden state after layer {high} of {self._model.arch.layers}"

    def _is_finite_after(self, layers: int, state: State, microbatch: Batch) -> bool:
        """Runs the first `layers` layers and the final norm."""
        arch = self._model.arch
        model = self._model.clone(arch=dataclasses.replace(arch, layers=layers, layer_kinds=arch.layer_kinds[:layers]))

        def run(variables: Variables, rows: Batch) -> jax.Array:
            first_layers = {
                name: {**tree, "blocks": jax.tree.map(lambda x: x[:layers], tree["blocks"])}
                for name, tree in variables.items()
            }
            hidden = model.apply(
                first_layers, rows.tokens, rows.positions, rows.segment_ids, rows.prompt_segment_ids, method="hidden"
            )
            assert isinstance(hidden, jax.Array)
            return jnp.all(jnp.isfinite(hidden) | (rows.segment_ids == 0)[..., None])

        return bool(jax.jit(run)(state.variables(), microbatch))

    def _loss_and_gradient(
        self, state: State, batch: Batch, index: jax.Array, kl: jax.Array
    ) -> tuple[jax.Array, Params]:
        """Returns one microbatch's share of the loss, and the largest magnitude in each leaf of its gradient, per layer
        in stacked leaves.
        """
        denominators = objectives.sum_weights(self._objective, objectives.merge_microbatches(batch))
        microbatch = microbatch_of(batch, index)

        def share(trained: Params) -> jax.Array:
            logps = response_logps(self._model, state.with_trainable(trained).variables(), microbatch)
            return objectives.compute_loss(self._objective, logps, microbatch, kl, denominators)[0]

        value, gradient = jax.value_and_grad(share)(state.trainable())

        def largest(path: _Path, x: jax.Array) -> jax.Array:
            first_axis = 1 if _is_stacked(path) else 0
            return jnp.max(jnp.abs(x.astype(jnp.float32)), axis=tuple(range(first_axis, x.ndim)))

        return value, jax.tree_util.tree_map_with_path(largest, gradient)

    def _in_gradient(self, state: State, batch: Batch, kl: float) -> Finding:
        if self._objective.whole_step:
            return Finding("the gradient (all log-probabilities are finite; the loss takes the whole step at once)")
        for index in range(int(batch.n_microbatches)):
            value, largest = self._microbatch_gradient(state, batch, jnp.asarray(index), jnp.asarray(kl, jnp.float32))
            if not np.isfinite(value):
                return Finding(f"the loss of microbatch {index + 1} (its log-probabilities are finite)")
            nonfinite = [
                (path, layer)
                for path, values in jax.tree_util.tree_leaves_with_path(largest)
                for layer, magnitude in enumerate(np.atleast_1d(np.asarray(values)).tolist())
                if not np.isfinite(magnitude)
            ]
            if nonfinite:
                path, layer = max(nonfinite, key=lambda leaf: _backward_order(*leaf))
                where = f"{_name(path)}, layer {layer + 1}" if _is_stacked(path) else _name(path)
                return Finding(f"the gradient of {where} (microbatch {index + 1}; the loss is finite)")
        return Finding("none when computed again: a sum or a norm overflowed, or the weights are one update further")


def _backward_order(path: _Path, layer: int) -> tuple[int, int]:
    """Returns a key that is larger the sooner a backward pass reaches a weight: the head and the last norm, the blocks
    from the top, the embedding.
    """
    if _is_stacked(path):
        return 1, layer
    return (0, 0) if "embed" in _name(path) else (2, 0)


def _is_stacked(path: _Path) -> bool:
    return "blocks" in _name(path).split(".")


def _name(path: _Path) -> str:
    return ".".join(str(getattr(part, "key", part)) for part in path)


@jax.jit
def _finite_leaves(tree: Variables) -> Variables:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)


def _nonfinite_places(logps: Float[np.ndarray, "A S"], batch: Batch) -> list[tuple[int, int]]:
    """Returns (microbatch, slot) of every value that is not finite, in order, without the empty microbatches."""
    filled = np.arange(len(logps))[:, None] < int(batch.n_microbatches)
    return [(int(microbatch), int(slot)) for microbatch, slot in np.argwhere(~np.isfinite(logps) & filled)]
