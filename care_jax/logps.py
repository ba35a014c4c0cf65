"""Hidden states to log-probabilities of tokens and sequences, never holding [tokens, vocabulary] at once.

The head is applied to a chunk of completion tokens at a time. The forward keeps the hidden states, the head and one
number a token, the log-sum-exp; the backward computes each chunk's logits again. Softmax and sums are float32; the
matrix products run in the dtype of `hidden` and accumulate in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_CONTRACT_LAST = (((1,), (1,)), ((), ()))
_CONTRACT_SECOND = (((1,), (0,)), ((), ()))
_CONTRACT_FIRST = (((0,), (0,)), ((), ()))


def completion_logps(
    hidden: Float[Array, "C d"],
    head: Float[Array, "V d"],
    targets: Int[Array, " C"],
    *,
    soft_cap: float | None = None,
    chunk: int = 1024,
    frozen_head: bool = False,
) -> Float[Array, " C"]:
    """log p(target) of each token, float32, in nats.

    `hidden` [C, d] are the states that predict the targets, in the compute dtype; `head` [V, d]; `targets` [C] ids in
    0..V-1. `soft_cap`: logits become cap tanh(logits / cap) first (Gemma 2). `chunk`: tokens whose logits are alive at
    once; C needs not be a multiple of it. The gradient of `head` accumulates in float32 and comes back in its dtype.
    `frozen_head`: the head gets no gradient, and that of `hidden` is formed in the forward pass, so that the backward
    only scales it (no logits are computed twice).
    """
    count, width = hidden.shape
    if count == 0:
        return jnp.zeros((0,), jnp.float32)
    size = min(chunk, count)
    pieces = -(-count // size)
    padding = pieces * size - count
    # Padded tokens score target 0; their values are cut off, and their cotangents are 0.
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(pieces, size, width)
    ids = jnp.pad(targets.astype(jnp.int32), (0, padding)).reshape(pieces, size)
    score = _frozen if frozen_head else _trained
    return score(hidden, head, ids, soft_cap).reshape(pieces * size)[:count]


def _logits(hidden: Array, head: Array, soft_cap: float | None) -> Array:
    """[chunk, V] float32, soft-capped."""
    logits = jax.lax.dot_general(hidden, head.astype(hidden.dtype), _CONTRACT_LAST, preferred_element_type=jnp.float32)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _is_target(ids: Array, vocabulary: int) -> Array:
    """[chunk, V] bool by comparison with an iota: a gather would collect a head that is sharded over the vocabulary."""
    return ids[:, None] == jax.lax.broadcasted_iota(jnp.int32, (ids.shape[0], vocabulary), 1)


def _score(hidden: Array, head: Array, ids: Array, soft_cap: float | None) -> tuple[Array, Array, Array]:
    """(log p(target) [chunk], log-sum-exp [chunk], logits [chunk, V])."""
    logits = _logits(hidden, head, soft_cap)
    lse = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.sum(jnp.where(_is_target(ids, head.shape[0]), logits, 0.0), axis=-1)
    return target - lse, lse, logits


def _logit_gradient(logits: Array, lse: Array, ids: Array, soft_cap: float | None) -> Array:
    """d log p(target) / d (logits before the cap), [chunk, V] float32."""
    probabilities = jnp.exp(logits - lse[:, None])
    gradient = jnp.where(_is_target(ids, logits.shape[-1]), 1.0, 0.0) - probabilities
    return gradient if soft_cap is None else gradient * (1.0 - jnp.square(logits / soft_cap))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _trained(hidden: Array, head: Array, ids: Array, soft_cap: float | None) -> Array:
    return jax.lax.map(lambda piece: _score(piece[0], head, piece[1], soft_cap)[0], (hidden, ids))


def _trained_forward(hidden: Array, head: Array, ids: Array, soft_cap: float | None) -> tuple[Array, Any]:
    logps, lse = jax.lax.map(lambda piece: _score(piece[0], head, piece[1], soft_cap)[:2], (hidden, ids))
    return logps, (hidden, head, ids, lse)


def _trained_backward(soft_cap: float | None, saved: Any, cotangent: Array) -> tuple[Array, Array, None]:
    hidden, head, ids, lse = saved
    weights = head.astype(hidden.dtype)

    def piece(head_gradient: Array, inputs: Any) -> tuple[Array, Array]:
        hidden_c, ids_c, lse_c, cotangent_c = inputs
        logits = _logits(hidden_c, head, soft_cap)
        gradient = _logit_gradient(logits, lse_c, ids_c, soft_cap) * cotangent_c[:, None]
        gradient = gradient.astype(hidden.dtype)
        hidden_gradient = jax.lax.dot_general(gradient, weights, _CONTRACT_SECOND, preferred_element_type=jnp.float32)
        head_gradient += jax.lax.dot_general(gradient, hidden_c, _CONTRACT_FIRST, preferred_element_type=jnp.float32)
        return head_gradient, hidden_gradient.astype(hidden.dtype)

    start = jnp.zeros(head.shape, jnp.float32)
    head_gradient, hidden_gradient = jax.lax.scan(piece, start, (hidden, ids, lse, cotangent))
    return hidden_gradient, head_gradient.astype(head.dtype), None


_trained.defvjp(_trained_forward, _trained_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _frozen(hidden: Array, head: Array, ids: Array, soft_cap: float | None) -> Array:
    return _trained(hidden, head, ids, soft_cap)


def _frozen_forward(hidden: Array, head: Array, ids: Array, soft_cap: float | None) -> tuple[Array, Any]:
    weights = head.astype(hidden.dtype)

    def piece(inputs: Any) -> tuple[Array, Array]:
        hidden_c, ids_c = inputs
        logps, lse, logits = _score(hidden_c, head, ids_c, soft_cap)
        gradient = _logit_gradient(logits, lse, ids_c, soft_cap).astype(hidden.dtype)
        slope = jax.lax.dot_general(gradient, weights, _CONTRACT_SECOND, preferred_element_type=jnp.float32)
        return logps, slope.astype(hidden.dtype)

    logps, slopes = jax.lax.map(piece, (hidden, ids))
    return logps, slopes


def _frozen_backward(soft_cap: float | None, slopes: Array, cotangent: Array) -> tuple[Array, None, None]:
    return (slopes * cotangent[:, :, None].astype(jnp.float32)).astype(slopes.dtype), None, None


_frozen.defvjp(_frozen_forward, _frozen_backward)


def sequence_logps(
    token_logps: Float[Array, " C"], completion_segments: Int[Array, " C"], num_segments: int
) -> Float[Array, " S"]:
    """Sum of each response's token log-probabilities, float32, in nats.

    `completion_segments` [C] holds each token's response in 0..S-1; S = `num_segments` marks padding, which is dropped.
    A response without tokens sums to 0.
    """
    sums = jax.ops.segment_sum(token_logps.astype(jnp.float32), completion_segments, num_segments=num_segments + 1)
    return sums[:num_segments]
