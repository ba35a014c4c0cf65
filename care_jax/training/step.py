"""One optimizer step as a pure function (state, batch) -> (state, metrics), to be jitted by the caller.

No collective is written here: `jax.jit` adds the sums over devices, from the shardings of the state and the batch. In
shapes, A is microbatches and S is responses per microbatch, as in `Batch`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from care_jax.data.packing.batch import Batch
from care_jax.logps import completion_logps, hidden_at, sequence_logps
from care_jax.losses.signature import Loss
from care_jax.models import head_weight
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder
from care_jax.training import objective as objectives
from care_jax.training.objective import Objective, Sums

Variables = dict[str, Params]  # by collection: params, and lora if adapters are trained
Scalar = Float[Array, ""]
# (loss, sums for the metrics, gradient), of a microbatch's share or of the whole step
LossAndGradient = tuple[Scalar, Sums, Params]


@flax.struct.dataclass
class State:
    """What a step updates and a checkpoint holds.

    step: int32 [], the number of steps taken. skipped: int32 [], how many of the last steps in a row skipped their
    update because it was not finite. lora: the adapters, if only they are trained, else None. Fields are Any because
    jax also fills them with shapes and shardings.
    """

    step: Any
    skipped: Any
    params: Any
    lora: Any
    opt_state: Any

    def variables(self) -> Variables:
        """Returns what `model.apply` takes."""
        return {"params": self.params} if self.lora is None else {"params": self.params, "lora": self.lora}

    def trainable(self) -> Params:
        """Returns the trained weights: all, or the adapters."""
        return self.params if self.lora is None else self.lora

    def with_trainable(self, trained: Params, **changes: object) -> "State":
        """Returns the state with these trained weights, and with the fields in `changes` replaced."""
        return dataclasses.replace(self, **{"params" if self.lora is None else "lora": trained}, **changes)


def init_state(params: Params, optimizer: optax.GradientTransformation, lora: Params | None = None) -> State:
    """Makes the state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return State(zero, zero, params, lora, optimizer.init(params if lora is None else lora))


def response_logps(model: Decoder, variables: Variables, microbatch: Batch) -> Float[Array, " S"]:
    """Returns the log-probability of each response of one microbatch, given its prompt, in float32.

    The rows run once; the head is applied only at the positions that predict a completion token.
    """
    hidden = model.apply(
        variables,
        microbatch.tokens,
        microbatch.positions,
        microbatch.segment_ids,
        microbatch.prompt_segment_ids,
        method="hidden",
    )
    assert isinstance(hidden, jax.Array)
    predictor_hidden = hidden_at(hidden, microbatch.predictor_positions)
    targets = microbatch.tokens.reshape(-1)[microbatch.completion_positions]
    count = targets.shape[0]
    token_logps = completion_logps(
        predictor_hidden,
        head_weight(model.arch, variables["params"]),
        jnp.pad(targets, (0, predictor_hidden.shape[0] - count)),
        soft_cap=model.arch.final_soft_cap,
        frozen_head="lora" in variables,
    )
    return sequence_logps(token_logps[:count], microbatch.completion_slots, microbatch.lengths.shape[0])


def make_logps(model: Decoder) -> Callable[[Variables, Batch], Float[Array, "A S"]]:
    """Returns the forward program of the reference, the evaluation and `score`: (variables, batch) -> logps [A, S]."""

    def logps(variables: Variables, batch: Batch) -> Float[Array, "A S"]:
        return _forward(model, variables, batch)

    return logps


def make_step(
    model: Decoder,
    loss: Loss | Sequence[Loss | tuple[Loss, float]] | Objective,
    optimizer: optax.GradientTransformation,
    *,
    accumulate_dtype: DTypeLike = jnp.float32,
    examples: int | None = None,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """Makes a pure training step.

    loss: a loss function (`losses.get`), or a list of them or of (function, weight) pairs.
    accumulate_dtype: dtype of the gradient summed over microbatches.
    examples: units per step; only a loss marked `whole_step` needs it, to see its units without padding.

    The loss is sum(w l) / sum(w) over the whole step, whatever the microbatches. Metrics are float32 scalars; one to
    which no unit of the step contributes is NaN. If the loss or the gradient is not finite, the update is skipped and
    counted in `state.skipped`.
    """
    objective = objectives.make_objective(loss)
    if objective.whole_step and examples is None:
        raise ValueError("a whole_step loss needs the number of units per step: make_step(..., examples=N)")
    differentiate = _differentiate_at_once if objective.whole_step else _differentiate_by_microbatch
    settings = _Settings(model, objective, accumulate_dtype, examples or 0)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        kl, kl_metrics = _kl(model, state.variables(), batch) if objective.needs_kl else (None, {})
        value, sums, gradient = differentiate(settings, state, batch, kl)
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
        means = objectives.take_means(sums)
        return state, {"loss": value, **means, **kl_metrics, "grad_norm": norm, "skipped": state.skipped}

    return step


def microbatch_of(batch: Batch, index: jax.Array | int) -> Batch:
    """Returns one microbatch, without the leading axis."""
    arrays = dataclasses.replace(batch, n_microbatches=None, mismatched=None)
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 0, keepdims=False), arrays)


def _forward(model: Decoder, variables: Variables, batch: Batch) -> Float[Array, "A S"]:
    """Returns logps without a gradient; 0 in microbatches that are not filled."""
    count, slots = batch.lengths.shape
    if count == 1:
        return response_logps(model, variables, microbatch_of(batch, 0))[None]

    def body(index, logps):
        return logps.at[index].set(response_logps(model, variables, microbatch_of(batch, index)))

    return lax.fori_loop(0, batch.n_microbatches, body, jnp.zeros((count, slots), jnp.float32))


def _kl(model: Decoder, variables: Variables, batch: Batch) -> tuple[Scalar, dict[str, Scalar]]:
    """Returns KTO's z0, an estimate of KL(policy || reference), and its metrics: the mean log-ratio of prompts with
    completions of other prompts over the whole step, clamped at 0 after the mean, without a gradient.
    """
    mismatched = batch.mismatched
    if mismatched is None:
        raise ValueError("this loss names `kl`, but the batch holds no mismatched completions")
    ratios = _forward(model, lax.stop_gradient(variables), mismatched) - mismatched.ref_logps
    weights = mismatched.response_weights
    weight_sum = jnp.sum(weights)
    mean = jnp.sum(weights * ratios) / weight_sum
    variance = jnp.sum(weights * (ratios - mean) ** 2) / jnp.maximum(weight_sum - 1, 1)
    kl = lax.stop_gradient(jnp.maximum(mean, 0))
    return kl, {"kl": kl, "kl/unclamped": mean, "kl/stderr": jnp.sqrt(variance / weight_sum)}


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The arguments of `make_step`. examples: units per step, for a loss that sees the whole step."""

    model: Decoder
    objective: Objective
    accumulate_dtype: DTypeLike
    examples: int


def _differentiate_by_microbatch(settings: _Settings, state: State, batch: Batch, kl: Scalar | None) -> LossAndGradient:
    """Computes the loss share and the gradient of every filled microbatch, and sums them in one loop."""
    model, objective = settings.model, settings.objective
    denominators = objectives.sum_weights(objective, objectives.merge_microbatches(batch))

    def loss_share(trained, microbatch):
        logps = response_logps(model, state.with_trainable(trained).variables(), microbatch)
        return objectives.compute_loss(objective, logps, microbatch, kl, denominators)

    differentiate = jax.value_and_grad(loss_share, has_aux=True)

    def one_microbatch(index):
        (value, sums), gradient = differentiate(state.trainable(), microbatch_of(batch, index))
        return value, sums, gradient

    return _accumulate(one_microbatch, batch, state.trainable(), settings.accumulate_dtype)


def _differentiate_at_once(settings: _Settings, state: State, batch: Batch, kl: Scalar | None) -> LossAndGradient:
    """Differentiates a loss that couples its inputs: computes all logps of the step, then the gradient of the loss with
    respect to them, and then propagates that to the weights, one microbatch at a time.
    """
    model, objective = settings.model, settings.objective
    merged = objectives.merge_microbatches(batch)
    units, unit_indices = objectives.select_units(objective.view, merged, settings.examples)
    denominators = objectives.sum_weights(objective, units)

    def loss_of(logps):
        unit_logps = objectives.select_logps(objective.view, logps, unit_indices)
        return objectives.compute_loss(objective, unit_logps, units, kl, denominators)

    logps = _forward(model, state.variables(), batch)
    (value, sums), flat_gradients = jax.value_and_grad(loss_of, has_aux=True)(logps.reshape(-1))
    logp_gradients = flat_gradients.reshape(logps.shape)

    def weighted_logps(trained, microbatch, gradients):
        return jnp.sum(gradients * response_logps(model, state.with_trainable(trained).variables(), microbatch))

    def one_microbatch(index):
        gradients = lax.dynamic_index_in_dim(logp_gradients, index, 0, keepdims=False)
        return jnp.zeros(()), {}, jax.grad(weighted_logps)(state.trainable(), microbatch_of(batch, index), gradients)

    _, _, gradient = _accumulate(one_microbatch, batch, state.trainable(), settings.accumulate_dtype)
    return value, sums, gradient


def _accumulate(
    one_microbatch: Callable[[jax.Array | int], LossAndGradient], batch: Batch, trained: Params, dtype: DTypeLike
) -> LossAndGradient:
    """Sums what `one_microbatch(index)` returns over the filled microbatches. A single one needs no loop."""
    if batch.lengths.shape[0] == 1:
        return one_microbatch(0)
    value, sums, _ = jax.eval_shape(one_microbatch, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, sums))
    # The accumulator of the gradient is made from the weights, so that it is sharded as they are.
    gradient = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), trained)

    def body(index, carry):
        value, sums, gradient = one_microbatch(index)
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), carry, (value, sums, gradient))

    return lax.fori_loop(0, batch.n_microbatches, body, (*zeros, gradient))
