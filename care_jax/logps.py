"""Turns hidden states into log-probabilities of tokens and sequences, without ever holding [tokens, vocabulary].

The head is applied to one tile of the vocabulary after the other: each of its rows is read once, and each row of its
gradient is written once. The forward pass keeps the hidden states, the head and one number per token, the log-sum-exp
(accumulated over the tiles as in Milakov & Gimelshein 2018, arXiv 1805.02867). The backward pass computes the logits of
each tile again. Softmax and sums are float32; matrix products are in the dtype of `hidden` and accumulate in float32.

On a mesh (`jax.set_mesh`) the vocabulary is split over the axes that store the head, and the hidden states are gathered
piece by piece instead of the head: no device holds the complete head or its gradient, and gradients of the head are not
summed over devices for every piece. Over fsdp the head is stored split by width. The forward pass exchanges this for a
split by vocabulary all at once. The backward pass does so for one tile at a time, and returns each tile's gradient in
the stored layout, so that neither exists twice.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from care_jax.hardware import platform, precision

# The mesh axes (care_jax.sharding) over which tokens are spread, and those that store the head.
TOKEN_AXES = ("data", "fsdp")
HEAD_AXES = ("tensor", "fsdp")
WIDTH_AXIS = "fsdp"  # of HEAD_AXES, the one by which the stored head is split by width
# At most `chunk` x COLUMNS logits exist at once. On a CPU tiles should fit its caches (8 MiB of logits with the default
# chunk); an accelerator needs few and large products.
COLUMNS = 32768
_CPU_COLUMNS = 2048
_CHUNK = 1024
# Tokens per piece, in units of `chunk`; pieces are computed one after the other. Pieces are smaller if devices gather
# them, as each device then holds the hidden states of all.
TOGETHER = 8
TOGETHER_GATHERED = 4
_LANES = 128  # the width of a tile is a multiple of a TPU's lanes, unless the vocabulary is smaller
_Carry = TypeVar("_Carry")
_Result = TypeVar("_Result")


class _Layout(NamedTuple):
    """How tokens and vocabulary are split on the mesh; empty on one device. Hashable: static in the custom gradient.

    tokens, vocabulary: the axes that split each of them. sizes: the size of each axis.
    """

    tokens: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def shared(self) -> tuple[str, ...]:
        """The axes that split both, over which the tokens of a piece are gathered."""
        return tuple(axis for axis in self.tokens if axis in self.vocabulary)

    @property
    def exchanged(self) -> tuple[str, ...]:
        """The axes that split the stored head by width, and the computed one by vocabulary."""
        return tuple(axis for axis in self.vocabulary if axis == WIDTH_AXIS)

    def count(self, axes: tuple[str, ...]) -> int:
        return math.prod(dict(self.sizes)[axis] for axis in axes)


def _layout(vocabulary: int, width: int) -> _Layout:
    """Returns the layout on the mesh in context; axes that do not divide the vocabulary (or width) do not split it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind == AxisType.Manual for kind in mesh.axis_types):
        return _Layout()
    sizes = {axis: mesh.shape[axis] for axis in mesh.axis_names if mesh.shape[axis] > 1}
    split = tuple(axis for axis in HEAD_AXES if axis in sizes and (axis != WIDTH_AXIS or width % sizes[axis] == 0))
    while split and vocabulary % math.prod(sizes[axis] for axis in split):
        split = split[:-1]
    return _Layout(tuple(axis for axis in TOKEN_AXES if axis in sizes), split, tuple(sizes.items()))


def hidden_at(hidden: Float[Array, "B T d"], places: Int[Array, " C"]) -> Float[Array, "C_padded d"]:
    """Returns the hidden states at flat places (row * T + column), as `completion_logps` needs them.

    On a mesh both the rows and the returned tokens are spread over devices. Every device sends the tokens that it
    holds, one piece after the other, so that no device ever holds all C. C is padded to a multiple of the number of
    devices with place 0.
    """
    layout = _layout(1, hidden.shape[-1])
    shards = layout.count(layout.tokens)
    places = jnp.pad(places, (0, -places.shape[0] % shards))
    if shards == 1 or places.shape[0] == 0:
        return hidden.reshape(-1, hidden.shape[-1])[places]
    per_device = places.shape[0] // shards
    pieces = max(1, -(-places.shape[0] // (TOGETHER_GATHERED * _CHUNK)))
    size = -(-per_device // pieces)
    # [pieces, devices * size]: a piece has the next `size` places of every device.
    in_pieces = jnp.pad(places.reshape(shards, per_device), ((0, 0), (0, pieces * size - per_device)))
    in_pieces = in_pieces.reshape(shards, pieces, size).swapaxes(0, 1).reshape(pieces, shards * size)

    def exchange(hidden: Array, in_pieces: Array) -> Array:
        local = hidden.reshape(-1, hidden.shape[-1])
        first = jax.lax.axis_index(layout.tokens) * local.shape[0]

        @jax.checkpoint  # for the backward pass, only the places of a piece are kept
        def exchange_piece(piece: tuple[Array, ...]) -> Array:
            (places,) = piece
            is_local = (places >= first) & (places < first + local.shape[0])
            states = jnp.where(is_local[:, None], local[jnp.where(is_local, places - first, 0)], 0)
            return jax.lax.psum_scatter(states, layout.tokens, tiled=True)

        return _map(exchange_piece, (in_pieces,)).reshape(-1, local.shape[1])[:per_device]

    rows = PartitionSpec(layout.tokens)
    return jax.shard_map(exchange, in_specs=(rows, PartitionSpec()), out_specs=rows)(hidden, in_pieces)


def completion_logps(
    hidden: Float[Array, "C d"],
    head: Float[Array, "V d"],
    targets: Int[Array, " C"],
    *,
    soft_cap: float | None = None,
    chunk: int = _CHUNK,
    frozen_head: bool = False,
) -> Float[Array, " C"]:
    """Returns log p(target) of each token, float32, in nats.

    hidden: the states that predict the targets, in the compute dtype. targets: ids in 0..V-1. soft_cap: logits become
    cap tanh(logits / cap) first (Gemma 2). chunk: no device holds more logits at once than those of `chunk` tokens over
    V columns, or over 32,768 if V is larger: memory does not grow further with V. frozen_head: the head gets no
    gradient, and that of `hidden` is computed in the forward pass, so that the backward pass only scales it and no
    logits are computed twice. Else the gradient of `head` accumulates in float32, and has the dtype of `head`.
    """
    count, vocabulary = hidden.shape[0], head.shape[0]
    if count == 0:
        return jnp.zeros((0,), jnp.float32)
    layout = _layout(vocabulary, hidden.shape[1])
    shards = layout.count(layout.tokens)
    per_device = -(-count // shards)
    gathered = per_device * layout.count(layout.shared)
    pieces = -(-gathered // ((TOGETHER_GATHERED if layout.shared else TOGETHER) * chunk))
    most_columns = _CPU_COLUMNS if platform() == "cpu" else COLUMNS
    columns = max(1, chunk * min(vocabulary, most_columns) // -(-gathered // pieces))
    # Padding has target 0; its values are cut off, and its cotangents are 0.
    padding = shards * per_device - count
    hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
    ids = jnp.pad(targets.astype(jnp.int32), (0, padding))
    logps = _logps_frozen_head if frozen_head else _logps
    return logps(hidden, head, ids, _Settings(layout, pieces, columns, soft_cap))[:count]


class _Settings(NamedTuple):
    """What is static. pieces: number of pieces of a device's tokens. columns: largest number of columns of a tile."""

    layout: _Layout
    pieces: int
    columns: int
    soft_cap: float | None


def _spread(function: Callable[..., _Result], settings: _Settings, inputs: str, outputs: str) -> Callable[..., _Result]:
    """Returns `function(settings, ...)` applied to each device's part; on one device, to everything.

    inputs, outputs: a letter per array. "t" is split over tokens, "h" as the head is stored.
    """
    layout = settings.layout
    on_device = functools.partial(function, settings)
    if not layout.sizes:
        return on_device
    rows = tuple(axis for axis in layout.vocabulary if axis not in layout.exchanged)
    head = PartitionSpec(rows or None, layout.exchanged or None)
    specs = {"t": PartitionSpec(layout.tokens or None), "h": head}
    out = tuple(specs[kind] for kind in outputs)
    return jax.shard_map(on_device, in_specs=tuple(specs[kind] for kind in inputs), out_specs=out, check_vma=False)


def _split(settings: _Settings, *arrays: Array) -> tuple[Array, ...]:
    """Returns the tokens of each array as [pieces, size, ...], padded with 0."""
    size = -(-arrays[0].shape[0] // settings.pieces)
    padding = settings.pieces * size - arrays[0].shape[0]
    padded = (jnp.pad(x, ((0, padding), *((0, 0) for _ in x.shape[1:]))) for x in arrays)
    return tuple(x.reshape(settings.pieces, size, *x.shape[1:]) for x in padded)


def _join(like: Array, pieces: Array) -> Array:
    """Undoes `_split`: returns as many tokens as `like` has."""
    return pieces.reshape(-1, *pieces.shape[2:])[: like.shape[0]]


def _gather(settings: _Settings, x: Array) -> Array:
    """Gathers the tokens of a piece from the devices that compute it together."""
    axes = settings.layout.shared
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _local(settings: _Settings, x: Array) -> Array:
    """Returns this device's tokens of a gathered piece."""
    axes = settings.layout.shared
    if not axes:
        return x
    size = x.shape[0] // settings.layout.count(axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)


def _sum_over(axes: tuple[str, ...], x: Array) -> Array:
    return jax.lax.psum(x, axes) if axes else x


class _Part(NamedTuple):
    """This device's part of the vocabulary, of `size` rows. take(first, count): returns rows of the head [count, d]."""

    size: int
    take: Callable[[Array | int, int], Array]


def _stored(settings: _Settings, weights: Array) -> Array:
    """Returns what a device stores of the head, as [devices, rows that each of them computes, stored width]."""
    return weights.reshape(settings.layout.count(settings.layout.exchanged), -1, weights.shape[1])


def _part(settings: _Settings, weights: Array, by_tiles: bool = False) -> _Part:
    """Returns the part, exchanged over devices all at once, or one tile at a time (`by_tiles`)."""
    axes, stored = settings.layout.exchanged, _stored(settings, weights)
    if axes and not by_tiles:
        stored = jax.lax.all_to_all(stored, axes, 0, 0, tiled=True)

    def take(first: Array | int, count: int) -> Array:
        tile = jax.lax.dynamic_slice_in_dim(stored, first, count, 1)
        if not axes:
            return tile[0]
        if by_tiles:
            return jax.lax.all_to_all(tile, axes, 0, 2, tiled=True)[0]
        # Only tiles change their layout, so that the exchanged part exists once.
        return with_layout_constraint(tile, Layout((0, 1, 2))).transpose(1, 0, 2).reshape(count, -1)

    return _Part(stored.shape[1], take)


class _Tile(NamedTuple):
    """Some columns of this device's vocabulary.

    The last tile starts early enough to be as wide as the others. first: the tile's first column, in the device's
    vocabulary. fresh: the first column of the tile that no other tile has, in the tile; None if that is column 0.
    """

    first: Array
    fresh: Array | None
    weights: Array  # [columns, d]


def _over_tiles(settings: _Settings, part: _Part, function: Callable[[_Carry, _Tile], _Carry], carry: _Carry) -> _Carry:
    """Calls function(carry, tile) -> carry for each tile of the part; without a loop if there is only one."""
    vocabulary = part.size
    count = -(-vocabulary // min(settings.columns, vocabulary))
    size = -(-vocabulary // count)
    if size > _LANES and count > 1:
        size = -(-size // _LANES) * _LANES
        count = -(-vocabulary // size)
    if count == 1:
        return function(carry, _Tile(jnp.zeros((), jnp.int32), None, part.take(0, vocabulary)))

    def next_tile(number: Array, carry: _Carry) -> _Carry:
        fresh = number * size
        first = jnp.minimum(fresh, vocabulary - size)
        return function(carry, _Tile(first, fresh - first if vocabulary % size else None, part.take(first, size)))

    return jax.lax.fori_loop(0, count, next_tile, carry)


def _columns(tile: _Tile, tokens: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, (tokens, tile.weights.shape[0]), 1)


def _is_target(settings: _Settings, ids: Array, tile: _Tile, vocabulary: int) -> Array:
    """Returns [tokens, columns] bool, by comparison: a gather would need the complete vocabulary."""
    axes = settings.layout.vocabulary
    first = jax.lax.axis_index(axes) * vocabulary if axes else 0
    columns = _columns(tile, ids.shape[0])
    is_target = (ids - first - tile.first)[:, None] == columns
    return is_target if tile.fresh is None else is_target & (columns >= tile.fresh)


def _einsum(subscripts: str, a: Array, b: Array) -> Array:
    """A product that accumulates in float32."""
    return jnp.einsum(subscripts, a, b, precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _logits(settings: _Settings, hidden: Array, tile: _Tile) -> Array:
    """Returns [tokens, columns] float32, soft-capped; minus infinity in columns that another tile has."""
    logits = _einsum("td,vd->tv", hidden, tile.weights)
    if settings.soft_cap is not None:
        logits = settings.soft_cap * jnp.tanh(logits / settings.soft_cap)
    return logits if tile.fresh is None else jnp.where(_columns(tile, hidden.shape[0]) < tile.fresh, -jnp.inf, logits)


def _through_cap(settings: _Settings, gradient: Array, logits: Array) -> Array:
    """Turns the gradient with respect to capped logits into that with respect to the logits before the cap."""
    if settings.soft_cap is None:
        return gradient
    # In columns of another tile the gradient is 0 and the logits are not finite: the result must be 0.
    return jnp.where(gradient == 0, 0.0, gradient * (1.0 - jnp.square(logits / settings.soft_cap)))


def _product(gradient: Array, weights: Array) -> Array:
    """[tokens, columns] with [columns, d] -> [tokens, d] float32, multiplied in the weights' dtype."""
    return _einsum("tv,vd->td", gradient.astype(weights.dtype), weights)


def _score(settings: _Settings, hidden: Array, part: _Part, ids: Array, with_slopes: bool) -> tuple[Array, ...]:
    """Returns (log p(target), log-sum-exp) [tokens].

    with_slopes: also returns d log p / d hidden [tokens, d], over this device's columns.
    """
    axes, tokens = settings.layout.vocabulary, hidden.shape[0]

    def add_tile(carry: tuple[Array, ...], tile: _Tile) -> tuple[Array, ...]:
        # The highest logit, the sum of exp(logit - highest), the target's logit; for slopes the gradients of the
        # log-sum-exp (times that sum) and of the target's logit.
        top, total, hit, *gradients = carry
        logits = _logits(settings, hidden, tile)
        target = _is_target(settings, ids, tile, part.size)
        higher = jnp.maximum(top, jnp.max(logits, axis=-1))
        rescale = jnp.exp(top - higher)
        exponentials = jnp.exp(logits - higher[:, None])
        total = total * rescale + jnp.sum(exponentials, axis=-1)
        hit = hit + jnp.sum(jnp.where(target, logits, 0.0), axis=-1)
        if gradients:
            of_lse, of_hit = gradients
            of_lse = of_lse * rescale[:, None] + _product(_through_cap(settings, exponentials, logits), tile.weights)
            of_hit = of_hit + _product(_through_cap(settings, jnp.where(target, 1.0, 0.0), logits), tile.weights)
            gradients = [of_lse, of_hit]
        return (higher, total, hit, *gradients)

    zeros = jnp.zeros((tokens,), jnp.float32)
    no_gradients = [jnp.zeros(hidden.shape, jnp.float32)] * 2 if with_slopes else []
    start = (zeros - jnp.inf, zeros, zeros, *no_gradients)
    top, total, hit, *gradients = _over_tiles(settings, part, add_tile, start)
    highest = jax.lax.pmax(top, axes) if axes else top
    total = _sum_over(axes, total * jnp.exp(top - highest))
    lse = highest + jnp.log(total)
    logps = _sum_over(axes, hit) - lse
    if not with_slopes:
        return logps, lse
    of_lse, of_hit = gradients
    return logps, lse, of_hit - of_lse * (jnp.exp(top - highest) / total)[:, None]


def _to_hidden(settings: _Settings, partial: Array) -> Array:
    """Sums the gradient of a piece's hidden states over the vocabulary; returns that of this device's tokens."""
    layout = settings.layout
    partial = _sum_over(tuple(axis for axis in layout.vocabulary if axis not in layout.shared), partial)
    return jax.lax.psum_scatter(partial, layout.shared, tiled=True) if layout.shared else partial


def _forward(
    settings: _Settings, hidden: Array, weights: Array, ids: Array, with_slopes: bool = False
) -> tuple[Array, Array]:
    """Returns (log p(target), log-sum-exp) of this device's tokens.

    with_slopes: the second is the gradient of log p(target) with respect to the hidden state.
    """
    part = _part(settings, weights)

    def score_piece(piece: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden, ids = (_gather(settings, x) for x in piece)
        logps, lse, *slopes = _score(settings, hidden, part, ids, with_slopes)
        logps = _local(settings, logps)
        return logps, _to_hidden(settings, slopes[0]).astype(hidden.dtype) if slopes else _local(settings, lse)

    first, second = _map(score_piece, _split(settings, hidden, ids))
    return _join(ids, first), _join(ids, second)


def _map(function: Callable[[tuple[Array, ...]], _Result], pieces: tuple[Array, ...]) -> _Result:
    """Applies `function` to each piece; without a loop if there is only one."""
    if pieces[0].shape[0] > 1:
        return jax.lax.map(function, pieces)
    return jax.tree.map(lambda x: x[None], function(tuple(x[0] for x in pieces)))


def _backward(
    settings: _Settings, hidden: Array, weights: Array, ids: Array, lse: Array, cotangent: Array, dtype: DTypeLike
) -> tuple[Array, Array]:
    """Returns the gradients of this device's hidden states, and of the part of the head that it stores (`weights`)."""
    axes, part = settings.layout.exchanged, _part(settings, weights, by_tiles=True)
    pieces = _split(settings, hidden, ids, lse, cotangent)

    def as_stored(gradient: Array) -> Array:
        """The gradient of a tile [d, columns] -> [devices, columns, stored width]."""
        rows = gradient.T[None]
        return jax.lax.all_to_all(rows, axes, 2, 0, tiled=True) if axes else rows

    def add_tile(carry: tuple[Array, Array], tile: _Tile) -> tuple[Array, Array]:
        # Tiles are the outer loop, pieces the inner: the float32 sum over all tokens is no larger than a tile.
        def add_piece(number: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            piece = (jax.lax.dynamic_index_in_dim(x, number, 0, keepdims=False) for x in pieces)
            piece_hidden, ids, lse, cotangent = (_gather(settings, x) for x in piece)
            logits = _logits(settings, piece_hidden, tile)
            target = _is_target(settings, ids, tile, part.size)
            gradient = jnp.where(target, 1.0, 0.0) - jnp.exp(logits - lse[:, None])
            gradient = (_through_cap(settings, gradient, logits) * cotangent[:, None]).astype(hidden.dtype)
            # The small operand is transposed, and written out: as a part of the product it is half as fast on a CPU.
            transposed = jax.lax.optimization_barrier(piece_hidden.T)
            of_head = _einsum("dt,tv->dv", transposed, gradient)
            head_gradient, hidden_gradient = carry
            of_piece = _to_hidden(settings, _product(gradient, tile.weights))
            of_piece = jax.lax.dynamic_index_in_dim(hidden_gradient, number, 0, keepdims=False) + of_piece
            return head_gradient + of_head, jax.lax.dynamic_update_index_in_dim(hidden_gradient, of_piece, number, 0)

        head_gradient, hidden_gradient = carry
        inner = jnp.zeros(tile.weights.shape[::-1], jnp.float32), hidden_gradient
        if settings.pieces == 1:
            of_tile, hidden_gradient = add_piece(0, inner)
        else:
            of_tile, hidden_gradient = jax.lax.fori_loop(0, settings.pieces, add_piece, inner)
        of_tile = as_stored(of_tile.astype(head_gradient.dtype))
        if of_tile.shape != head_gradient.shape:
            # Columns that two tiles have are 0 in one of them.
            of_tile = of_tile + jax.lax.dynamic_slice_in_dim(head_gradient, tile.first, of_tile.shape[1], 1)
            of_tile = jax.lax.dynamic_update_slice_in_dim(head_gradient, of_tile, tile.first, 1)
        return of_tile, hidden_gradient

    # Over devices with the same part of the head and other tokens, gradients are summed once, after all tiles.
    others = tuple(axis for axis in settings.layout.tokens if axis not in settings.layout.shared)
    head_gradient = jnp.zeros(_stored(settings, weights).shape, jnp.float32 if others else dtype)
    carry = head_gradient, jnp.zeros(pieces[0].shape, jnp.float32)
    head_gradient, hidden_gradient = _over_tiles(settings, part, add_tile, carry)
    hidden_gradient = _join(ids, hidden_gradient).astype(hidden.dtype)
    return hidden_gradient, _sum_over(others, head_gradient).reshape(weights.shape).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _logps(hidden: Array, head: Array, ids: Array, settings: _Settings) -> Array:
    return _spread(_forward, settings, "tht", "tt")(hidden, head.astype(hidden.dtype), ids)[0]


def _logps_forward(hidden: Array, head: Array, ids: Array, settings: _Settings) -> tuple[Array, tuple[Array, ...]]:
    logps, lse = _spread(_forward, settings, "tht", "tt")(hidden, head.astype(hidden.dtype), ids)
    return logps, (hidden, head, ids, lse)


def _logps_backward(settings: _Settings, saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, None]:
    hidden, head, ids, lse = saved
    run = _spread(functools.partial(_backward, dtype=head.dtype), settings, "thttt", "th")
    return *run(hidden, head.astype(hidden.dtype), ids, lse, cotangent), None


_logps.defvjp(_logps_forward, _logps_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _logps_frozen_head(hidden: Array, head: Array, ids: Array, settings: _Settings) -> Array:
    return _logps(hidden, head, ids, settings)


def _frozen_head_forward(hidden: Array, head: Array, ids: Array, settings: _Settings) -> tuple[Array, Array]:
    run = _spread(functools.partial(_forward, with_slopes=True), settings, "tht", "tt")
    return run(hidden, head.astype(hidden.dtype), ids)


def _frozen_head_backward(settings: _Settings, slopes: Array, cotangent: Array) -> tuple[Array, None, None]:
    return (slopes * cotangent[:, None]).astype(slopes.dtype), None, None


_logps_frozen_head.defvjp(_frozen_head_forward, _frozen_head_backward)


def sequence_logps(
    token_logps: Float[Array, " C"], completion_segments: Int[Array, " C"], num_segments: int
) -> Float[Array, " S"]:
    """Returns the sum of the token log-probabilities of each response, float32, in nats.

    completion_segments: each token's response in 0..S-1; S = `num_segments` marks padding, which is dropped. The sum of
    a response without tokens is 0.
    """
    sums = jax.ops.segment_sum(token_logps.astype(jnp.float32), completion_segments, num_segments=num_segments + 1)
    return sums[:num_segments]
