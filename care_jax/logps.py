"""Hidden states to log-probabilities of tokens and sequences, never holding [tokens, vocabulary] at once.

The head is applied to a chunk of completion tokens at a time. The forward keeps the hidden states, the head and one
number a token, the log-sum-exp; the backward computes each chunk's logits again. Softmax and sums are float32; the
matrix products run in the dtype of `hidden` and accumulate in float32.

On a mesh (`jax.set_mesh`) the vocabulary is split over the axes that store the head, and the chunk's hidden states are
gathered instead of the head: no device holds the whole head or its gradient, and no chunk sums a gradient over devices.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

# Mesh axes (care_jax.sharding) that rows, and so tokens, are spread over; and those that hold the head's weights.
TOKEN_AXES = ("data", "fsdp")
HEAD_AXES = ("tensor", "fsdp")
# A chunk grows with the vocabulary's shards, up to this many times: its logits shrink as much, its collectives do not.
CHUNK_GROWTH = 8


class _Layout(NamedTuple):
    """How tokens and vocabulary lie on the mesh; all empty on one device. Hashable: static in the custom gradient.

    `tokens`: axes that tokens are split over; `vocabulary`: axes that the vocabulary is; `shared`: in both, so that a
    chunk is gathered over them; `sizes`: of each axis.
    """

    tokens: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def shared(self) -> tuple[str, ...]:
        return tuple(axis for axis in self.tokens if axis in self.vocabulary)

    def count(self, axes: tuple[str, ...]) -> int:
        return math.prod(dict(self.sizes)[axis] for axis in axes)


def _layout(vocabulary: int) -> _Layout:
    """The layout on the mesh in context; axes that do not divide the vocabulary do not split it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind == AxisType.Manual for kind in mesh.axis_types):
        return _Layout()
    sizes = {axis: mesh.shape[axis] for axis in mesh.axis_names if mesh.shape[axis] > 1}
    split = tuple(axis for axis in HEAD_AXES if axis in sizes)
    while split and vocabulary % math.prod(sizes[axis] for axis in split):
        split = split[:-1]
    return _Layout(tuple(axis for axis in TOKEN_AXES if axis in sizes), split, tuple(sizes.items()))


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
    0..V-1. `soft_cap`: logits become cap tanh(logits / cap) first (Gemma 2). `chunk`: no device holds logits of more
    than `chunk` x V numbers at once; C needs not be a multiple of it. The gradient of `head` accumulates in float32 and
    comes back in its dtype. `frozen_head`: the head gets no gradient, and that of `hidden` is formed in the forward
    pass, so that the backward only scales it (no logits are computed twice).
    """
    count = hidden.shape[0]
    if count == 0:
        return jnp.zeros((0,), jnp.float32)
    layout = _layout(head.shape[0])
    shards = layout.count(layout.tokens)
    together = chunk * min(layout.count(layout.vocabulary), CHUNK_GROWTH)
    own = -(-count // shards)
    pieces = -(-own * layout.count(layout.shared) // together)
    # Padded tokens score target 0; their values are cut off, and their cotangents are 0.
    padding = shards * own - count
    hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
    ids = jnp.pad(targets.astype(jnp.int32), (0, padding))
    score = _frozen if frozen_head else _trained
    return score(hidden, head, ids, _Setting(layout, pieces, soft_cap))[:count]


class _Setting(NamedTuple):
    """What is static: the layout, pieces a device's tokens are cut into, and the soft cap."""

    layout: _Layout
    pieces: int
    soft_cap: float | None


def _spread(function: Any, setting: _Setting, inputs: str, outputs: str) -> Any:
    """`function` of each device's part: "t" is split over tokens, "v" over the vocabulary. On one device, itself."""
    layout = setting.layout
    function = functools.partial(function, setting)
    if not layout.sizes:
        return function
    specs = {"t": PartitionSpec(layout.tokens or None), "v": PartitionSpec(layout.vocabulary or None)}
    out = tuple(specs[kind] for kind in outputs)
    return jax.shard_map(function, in_specs=tuple(specs[kind] for kind in inputs), out_specs=out, check_vma=False)


def _cut(setting: _Setting, *arrays: Array) -> tuple[Array, ...]:
    """Each array's tokens as [pieces, size, ...], padded with 0 where they do not divide."""
    size = -(-arrays[0].shape[0] // setting.pieces)
    padding = setting.pieces * size - arrays[0].shape[0]
    padded = (jnp.pad(x, ((0, padding), *((0, 0) for _ in x.shape[1:]))) for x in arrays)
    return tuple(x.reshape(setting.pieces, size, *x.shape[1:]) for x in padded)


def _joined(like: Array, pieces: Array) -> Array:
    """What `_cut` cut, without its padding: as many tokens as `like` has."""
    return pieces.reshape(-1, *pieces.shape[2:])[: like.shape[0]]


def _gathered(setting: _Setting, x: Array) -> Array:
    """A piece's tokens of all the devices that work on it together."""
    axes = setting.layout.shared
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _own(setting: _Setting, x: Array) -> Array:
    """This device's tokens of a gathered piece."""
    axes = setting.layout.shared
    if not axes:
        return x
    size = x.shape[0] // setting.layout.count(axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)


def _summed(axes: tuple[str, ...], x: Array) -> Array:
    return jax.lax.psum(x, axes) if axes else x


def _is_target(setting: _Setting, ids: Array, vocabulary: int) -> Array:
    """[tokens, this device's vocabulary] bool, by comparison: a gather would need the whole vocabulary."""
    axes = setting.layout.vocabulary
    first = jax.lax.axis_index(axes) * vocabulary if axes else 0
    return (ids - first)[:, None] == jax.lax.broadcasted_iota(jnp.int32, (ids.shape[0], vocabulary), 1)


def _logits(setting: _Setting, hidden: Array, weights: Array) -> Array:
    """[tokens, this device's vocabulary] float32, soft-capped."""
    logits = jnp.einsum("td,vd->tv", hidden, weights, preferred_element_type=jnp.float32)
    cap = setting.soft_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _score(setting: _Setting, hidden: Array, weights: Array, ids: Array) -> tuple[Array, Array, Array]:
    """(log p(target) [tokens], log-sum-exp [tokens], logits)."""
    axes = setting.layout.vocabulary
    logits = _logits(setting, hidden, weights)
    top = jnp.max(logits, axis=-1)
    top = jax.lax.pmax(top, axes) if axes else top
    lse = top + jnp.log(_summed(axes, jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)))
    hit = jnp.where(_is_target(setting, ids, weights.shape[0]), logits, 0.0)
    return _summed(axes, jnp.sum(hit, axis=-1)) - lse, lse, logits


def _logit_gradient(setting: _Setting, logits: Array, lse: Array, ids: Array) -> Array:
    """d log p(target) / d (logits before the cap), float32."""
    hit = jnp.where(_is_target(setting, ids, logits.shape[-1]), 1.0, 0.0)
    gradient = hit - jnp.exp(logits - lse[:, None])
    return gradient if setting.soft_cap is None else gradient * (1.0 - jnp.square(logits / setting.soft_cap))


def _to_hidden(setting: _Setting, gradient: Array, weights: Array) -> Array:
    """A piece's gradient with respect to this device's hidden states of it, summed over the vocabulary."""
    layout = setting.layout
    partial = jnp.einsum("tv,vd->td", gradient, weights, preferred_element_type=jnp.float32)
    partial = _summed(tuple(axis for axis in layout.vocabulary if axis not in layout.shared), partial)
    return jax.lax.psum_scatter(partial, layout.shared, tiled=True) if layout.shared else partial


def _forward(setting: _Setting, hidden: Array, weights: Array, ids: Array) -> tuple[Array, Array]:
    """(log p(target), log-sum-exp) of this device's tokens."""

    def piece(inputs: Any) -> tuple[Array, Array]:
        hidden_c, ids_c = (_gathered(setting, x) for x in inputs)
        logps, lse, _ = _score(setting, hidden_c, weights, ids_c)
        return _own(setting, logps), _own(setting, lse)

    logps, lse = jax.lax.map(piece, _cut(setting, hidden, ids))
    return _joined(ids, logps), _joined(ids, lse)


def _backward(
    setting: _Setting, hidden: Array, weights: Array, ids: Array, lse: Array, cotangent: Array
) -> tuple[Array, Array]:
    """Gradients of this device's hidden states, and of its vocabulary's rows of the head (float32)."""

    def piece(head_gradient: Array, inputs: Any) -> tuple[Array, Array]:
        hidden_c, ids_c, lse_c, cotangent_c = (_gathered(setting, x) for x in inputs)
        logits = _logits(setting, hidden_c, weights)
        gradient = _logit_gradient(setting, logits, lse_c, ids_c) * cotangent_c[:, None]
        gradient = gradient.astype(hidden.dtype)
        head_gradient += jnp.einsum("tv,td->vd", gradient, hidden_c, preferred_element_type=jnp.float32)
        return head_gradient, _to_hidden(setting, gradient, weights).astype(hidden.dtype)

    start = jnp.zeros(weights.shape, jnp.float32)
    head_gradient, hidden_gradient = jax.lax.scan(piece, start, _cut(setting, hidden, ids, lse, cotangent))
    # Devices that hold the same rows of the head and other tokens: summed once, after all pieces.
    others = tuple(axis for axis in setting.layout.tokens if axis not in setting.layout.shared)
    return _joined(ids, hidden_gradient), _summed(others, head_gradient)


def _forward_slopes(setting: _Setting, hidden: Array, weights: Array, ids: Array) -> tuple[Array, Array]:
    """(log p(target), its gradient with respect to the hidden state) of this device's tokens."""

    def piece(inputs: Any) -> tuple[Array, Array]:
        hidden_c, ids_c = (_gathered(setting, x) for x in inputs)
        logps, lse, logits = _score(setting, hidden_c, weights, ids_c)
        gradient = _logit_gradient(setting, logits, lse, ids_c).astype(hidden.dtype)
        return _own(setting, logps), _to_hidden(setting, gradient, weights).astype(hidden.dtype)

    logps, slopes = jax.lax.map(piece, _cut(setting, hidden, ids))
    return _joined(ids, logps), _joined(ids, slopes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _trained(hidden: Array, head: Array, ids: Array, setting: _Setting) -> Array:
    return _spread(_forward, setting, "tvt", "tt")(hidden, head.astype(hidden.dtype), ids)[0]


def _trained_forward(hidden: Array, head: Array, ids: Array, setting: _Setting) -> tuple[Array, Any]:
    logps, lse = _spread(_forward, setting, "tvt", "tt")(hidden, head.astype(hidden.dtype), ids)
    return logps, (hidden, head, ids, lse)


def _trained_backward(setting: _Setting, saved: Any, cotangent: Array) -> tuple[Array, Array, None]:
    hidden, head, ids, lse = saved
    weights = head.astype(hidden.dtype)
    hidden_gradient, head_gradient = _spread(_backward, setting, "tvttt", "tv")(hidden, weights, ids, lse, cotangent)
    return hidden_gradient, head_gradient.astype(head.dtype), None


_trained.defvjp(_trained_forward, _trained_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _frozen(hidden: Array, head: Array, ids: Array, setting: _Setting) -> Array:
    return _trained(hidden, head, ids, setting)


def _frozen_forward(hidden: Array, head: Array, ids: Array, setting: _Setting) -> tuple[Array, Array]:
    return _spread(_forward_slopes, setting, "tvt", "tt")(hidden, head.astype(hidden.dtype), ids)


def _frozen_backward(setting: _Setting, slopes: Array, cotangent: Array) -> tuple[Array, None, None]:
    return (slopes * cotangent[:, None]).astype(slopes.dtype), None, None


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
