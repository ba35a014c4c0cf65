"""One optimizer step as one pure function: (state, batch) -> (state, metrics), ready for `jax.jit`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from care_jax.data.packing.batch import Batch
from care_jax.logps import completion_logps, hidden_at, sequence_logps
from care_jax.models import head_weight
from care_jax.training import objective as objectives

Variables = dict[str, Any]


@flax.struct.dataclass
class State:
    """Everything that a checkpoint must hold. `lora` is None in full training; else it alone is trained."""

    step: Any  # int32 [], updates taken
    skipped: Any  # int32 [], non-finite updates skipped in a row
    params: Any
    lora: Any
    opt_state: Any

    def variables(self) -> Variables:
        return {"params": self.params} if self.lora is None else {"params": self.params, "lora": self.lora}

    def trainable(self) -> Any:
        return self.params if self.lora is None else self.lora

    def with_trainable(self, trained: Any, **changes: Any) -> "State":
        return dataclasses.replace(self, **{"params" if self.lora is None else "lora": trained}, **changes)


def init_state(params: Any, optimizer: optax.GradientTransformation, lora: Any = None) -> State:
    zero = jnp.zeros((), jnp.int32)
    return State(zero, zero, params, lora, optimizer.init(params if lora is None else lora))


def response_logps(model: nn.Module, variables: Variables, microbatch: Batch) -> jax.Array:
    """[S] float32: the log-probability of each response of one microbatch, given its prompt.

    The rows run once; only the places that predict a completion token reach the head.
    """
    hidden: Any = model.apply(
        variables,
        microbatch.tokens,
        microbatch.positions,
        microbatch.segment_ids,
        microbatch.prompt_segment_ids,
        method="hidden",
    )
    predicting = hidden_at(hidden, microbatch.predictor_positions)
    targets = microbatch.tokens.reshape(-1)[microbatch.completion_positions]
    count = targets.shape[0]
    token_logps = completion_logps(
        predicting,
        head_weight(model.arch, variables["params"]),
        jnp.pad(targets, (0, predicting.shape[0] - count)),
        soft_cap=model.arch.final_soft_cap,
        frozen_head="lora" in variables,
    )
    return sequence_logps(token_logps[:count], microbatch.completion_segments, microbatch.lengths.shape[0])


def make_logps(model: nn.Module) -> Callable[[Variables, Batch], jax.Array]:
    """The forward program of the reference, of evaluation and of `score`: (variables, batch) -> logps [A, S]."""

    def logps(variables: Variables, batch: Batch) -> jax.Array:
        return _forward(model, variables, batch)

    return logps


def make_step(
    model: nn.Module,
    loss: Any,
    optimizer: optax.GradientTransformation,
    *,
    accumulate_dtype: Any = jnp.float32,
    examples: int | None = None,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """A pure training step.

    loss: a loss function (`losses.get`), or a list of them or of (function, weight) pairs.
    accumulate_dtype: of the gradient summed over microbatches.
    examples: units of a step; only a loss marked `whole_step` needs it, to see its units without padding.
    The loss is sum(w l) / sum(w) over the whole step, whatever the microbatches. Metrics are float32 scalars, NaN where
    a step holds none of a kind. An update with a non-finite loss or gradient is skipped and counted in `state.skipped`.
    """
    objective = objectives.make_objective(loss)
    if objective.whole_step and examples is None:
        raise ValueError("a whole_step loss needs the number of units a step: make_step(..., examples=N)")

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        kl, kl_metrics = _kl(model, state.variables(), batch) if objective.needs_kl else (None, {})
        if objective.whole_step and examples is not None:
            value, sums, gradient = _whole_step(model, objective, state, batch, kl, accumulate_dtype, examples)
        else:
            value, sums, gradient = _by_microbatch(model, objective, state, batch, kl, accumulate_dtype)
        norm = optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), gradient))
        finite = jnp.isfinite(value) & jnp.isfinite(norm)

        def update():
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable())
            return optax.apply_updates(state.trainable(), updates), opt_state

        def skip():
            return state.trainable(), state.opt_state

        trained, opt_state = lax.cond(finite, update, skip)
        state = state.with_trainable(
            trained,
            opt_state=opt_state,
            step=state.step + 1,
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        metrics = {"loss": value, **objectives.means(sums), **kl_metrics, "grad_norm": norm, "skipped": state.skipped}
        return state, metrics

    return step


def _microbatch(batch: Batch, index: jax.Array | int) -> Batch:
    """Microbatch `index`, without the leading axis."""
    arrays = dataclasses.replace(batch, n_microbatches=None, mismatched=None)
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 0, keepdims=False), arrays)


def _forward(model: nn.Module, variables: Variables, batch: Batch) -> jax.Array:
    """logps [A, S] without a gradient; 0 in microbatches that were not filled."""
    count, slots = batch.lengths.shape
    if count == 1:
        return response_logps(model, variables, _microbatch(batch, 0))[None]

    def body(index, found):
        return found.at[index].set(response_logps(model, variables, _microbatch(batch, index)))

    return lax.fori_loop(0, batch.n_microbatches, body, jnp.zeros((count, slots), jnp.float32))


def _kl(model: nn.Module, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """KTO's z0: mean log-ratio of the whole step's mismatched completions, clamped at 0 after the mean, no gradient."""
    other = batch.mismatched
    if other is None:
        raise ValueError("this loss names `kl`, but the batch holds no mismatched completions")
    ratios = _forward(model, lax.stop_gradient(variables), other) - other.ref_logps
    weights = other.segment_weights
    count = jnp.sum(weights)
    mean = jnp.sum(weights * ratios) / count
    variance = jnp.sum(weights * (ratios - mean) ** 2) / jnp.maximum(count - 1, 1)
    kl = lax.stop_gradient(jnp.maximum(mean, 0))
    return kl, {"kl": kl, "kl/unclamped": mean, "kl/stderr": jnp.sqrt(variance / count)}


def _with_trainable(state: State, trained: Any) -> Variables:
    return state.with_trainable(trained).variables()


def _by_microbatch(model, objective, state: State, batch: Batch, kl, accumulate_dtype):
    """Loss, metric sums and gradient, one value-and-gradient a filled microbatch inside one loop."""
    totals = objectives.denominators(objective, objectives.flatten(batch))

    def share(trained, microbatch):
        logps = response_logps(model, _with_trainable(state, trained), microbatch)
        return objectives.evaluate(objective, logps, microbatch, kl, totals)

    differentiate = jax.value_and_grad(share, has_aux=True)

    def run(index):
        (value, sums), gradient = differentiate(state.trainable(), _microbatch(batch, index))
        return value, sums, gradient

    return _accumulate(run, batch, state.trainable(), accumulate_dtype)


def _whole_step(model, objective, state: State, batch: Batch, kl, accumulate_dtype, examples: int):
    """A loss that couples its inputs: all logps first, the gradient with respect to them once, then their backward."""
    flat = objectives.flatten(batch)
    # The loss must see the step's units alone: the filled ones, in order, are exactly `examples`.
    filled = jnp.nonzero(objectives.unit_weights(objective.view, flat) > 0, size=examples, fill_value=0)[0]
    taken = {
        "pairs": ("pairs", "pair_weights"),
        "unpaired": ("lengths", "ratings", "ref_logps", "desirable", "segment_weights"),
        "lists": ("groups", "group_mask", "group_weights"),
    }[objective.view]
    units = dataclasses.replace(flat, **{name: getattr(flat, name)[filled] for name in taken})
    totals = objectives.denominators(objective, units)

    def whole(logps):
        seen = logps[filled] if objective.view == "unpaired" else logps
        return objectives.evaluate(objective, seen, units, kl, totals)

    logps = _forward(model, state.variables(), batch)
    (value, sums), flat_coefficients = jax.value_and_grad(whole, has_aux=True)(logps.reshape(-1))
    coefficients = flat_coefficients.reshape(logps.shape)

    def weighted(trained, microbatch, weights):
        return jnp.sum(weights * response_logps(model, _with_trainable(state, trained), microbatch))

    def run(index):
        weights = lax.dynamic_index_in_dim(coefficients, index, 0, keepdims=False)
        return jnp.zeros(()), {}, jax.grad(weighted)(state.trainable(), _microbatch(batch, index), weights)

    _, _, gradient = _accumulate(run, batch, state.trainable(), accumulate_dtype)
    return value, sums, gradient


def _accumulate(run, batch: Batch, trained: Any, dtype: Any):
    """Sums `run(index) -> (value, sums, gradient)` over the filled microbatches; no loop where there is only one."""
    if batch.lengths.shape[0] == 1:
        return run(0)
    value, sums, _ = jax.eval_shape(run, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, sums))
    # Zeros made from the parameters, so that the accumulator is sharded as they are.
    gradient = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), trained)

    def body(index, carry):
        value, sums, gradient = run(index)
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), carry, (value, sums, gradient))

    return lax.fori_loop(0, batch.n_microbatches, body, (*zeros, gradient))
