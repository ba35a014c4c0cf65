"""Which tensor of a step is the first that is not finite: programs of their own, run only where an update failed.

They follow the order in which a step computes: weights, hidden states layer by layer, log-probabilities, loss, and then
the gradient from the head down. They run with the weights that the loop holds by then; after a skipped update those are
the same, unless the next update has been taken already.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from care_jax.data.packing.plans import Batch
from care_jax.training import objective as objectives
from care_jax.training.objective import Objective
from care_jax.training.step import State, make_logps, response_logps


@dataclasses.dataclass(frozen=True)
class Finding:
    """tensor: its name, for a reader. place: (microbatch, slot) of the response it was found in, if in one."""

    tensor: str
    place: tuple[int, int] | None = None


class Diagnosis:
    """Compiled when first asked; the loop makes one and asks it seldom."""

    def __init__(self, model: Any, objective: Objective):
        self._model, self._objective = model, objective
        self._logps = jax.jit(make_logps(model))
        self._share = jax.jit(self._gradient)

    def first_nonfinite(self, state: State, batch: Batch, kl: float) -> Finding:
        """batch: on the devices, as the step took it. kl: KTO's z0 of the step, where the loss names it."""
        bad = _leaves(state.variables())
        if bad:
            return Finding(f"the weight {bad[0]}")
        ref = _places(np.asarray(batch.ref_logps), batch)
        if ref:
            return Finding("the reference's log-probability of a response", ref[0])
        found = _places(np.asarray(self._logps(state.variables(), dataclasses.replace(batch, mismatched=None))), batch)
        if found:
            return Finding(self._layer(state, batch, found[0]), found[0])
        other = batch.mismatched
        if other is not None and _places(np.asarray(self._logps(state.variables(), other)), other):
            return Finding("the log-probability of a mismatched completion (of the KL term)")
        return self._of_gradient(state, batch, kl)

    def _layer(self, state: State, batch: Batch, place: tuple[int, int]) -> str:
        """The first layer behind which a response's microbatch is not finite, by halving."""
        low, high = 0, self._model.arch.layers
        microbatch = jax.tree.map(
            lambda x: x[place[0]], dataclasses.replace(batch, n_microbatches=None, mismatched=None)
        )
        if self._finite_behind(high, state, microbatch):
            return "a response's log-probability (the hidden states are finite, its logits are not)"
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._finite_behind(middle, state, microbatch) else (low, middle)
        return f"the hidden state behind layer {high} of {self._model.arch.layers}"

    def _finite_behind(self, layers: int, state: State, microbatch: Batch) -> bool:
        arch = self._model.arch
        cut = dataclasses.replace(arch, layers=layers, layer_kinds=arch.layer_kinds[:layers])
        model = self._model.clone(arch=cut)

        def run(variables, one):
            kept = {
                name: {**tree, "blocks": jax.tree.map(lambda x: x[:layers], tree["blocks"])}
                for name, tree in variables.items()
            }
            hidden = model.apply(
                kept, one.tokens, one.positions, one.segment_ids, one.prompt_segment_ids, method="hidden"
            )
            return jnp.all(jnp.isfinite(hidden) | (one.segment_ids == 0)[..., None])

        return bool(jax.jit(run)(state.variables(), microbatch))

    def _gradient(self, state: State, batch: Batch, index: Any, kl: Any) -> tuple[jax.Array, Any]:
        """The loss's share of one microbatch, and its gradient's largest magnitude: a leaf, of each layer apart."""
        totals = objectives.denominators(self._objective, objectives.flatten(batch))
        arrays = dataclasses.replace(batch, n_microbatches=None, mismatched=None)
        one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), arrays)

        def share(trained):
            logps = response_logps(self._model, state.with_trainable(trained).variables(), one)
            return objectives.evaluate(self._objective, logps, one, kl, totals)[0]

        value, gradient = jax.value_and_grad(share)(state.trainable())

        def largest(path, x):
            keep = 1 if _stacked(path) else 0
            return jnp.max(jnp.abs(x.astype(jnp.float32)), axis=tuple(range(keep, x.ndim)))

        return value, jax.tree_util.tree_map_with_path(largest, gradient)

    def _of_gradient(self, state: State, batch: Batch, kl: float) -> Finding:
        if self._objective.whole_step:
            return Finding("the gradient (all log-probabilities are finite; the loss sees the whole step at once)")
        for index in range(int(batch.n_microbatches)):
            value, largest = self._share(state, batch, jnp.asarray(index), jnp.asarray(kl, jnp.float32))
            if not np.isfinite(value):
                return Finding(f"the loss of microbatch {index + 1} (its log-probabilities are finite)")
            bad = [
                (path, layer)
                for path, values in jax.tree_util.tree_leaves_with_path(largest)
                for layer, one in enumerate(np.atleast_1d(np.asarray(values)).tolist())
                if not np.isfinite(one)
            ]
            if bad:
                path, layer = max(bad, key=lambda one: _backward(*one))
                where = f"{_named(path)}, layer {layer + 1}" if _stacked(path) else _named(path)
                return Finding(f"the gradient of {where} (microbatch {index + 1}; the loss is finite)")
        return Finding("none when computed again: a sum or a norm overflowed, or the weights are one update further")


def _backward(path: Any, layer: int) -> tuple[int, int]:
    """Larger for what a backward pass reaches sooner: the head and the last norm, the blocks from the top, the rest."""
    if _stacked(path):
        return 1, layer
    return (0, 0) if "embed" in _named(path) else (2, 0)


def _stacked(path: Any) -> bool:
    return "blocks" in _named(path).split(".")


def _named(path: Any) -> str:
    return ".".join(str(getattr(part, "key", part)) for part in path)


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)


def _leaves(tree: Any) -> list[str]:
    """Names of the leaves that are not finite."""
    return [_named(path) for path, fine in jax.tree_util.tree_leaves_with_path(_finite(tree)) if not fine]


def _places(logps: np.ndarray, batch: Batch) -> list[tuple[int, int]]:
    """(microbatch, slot) of every value [A, S] that is not finite, in order, in the microbatches that are filled."""
    filled = np.arange(len(logps))[:, None] < int(batch.n_microbatches)
    return [(int(a), int(s)) for a, s in np.argwhere(~np.isfinite(logps) & filled)]
