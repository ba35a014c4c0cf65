"""Hidden states to log-probabilities of tokens and sequences, never holding [tokens, vocabulary] at once.

The head is applied a tile of the vocabulary at a time, so that each of its rows is read once, and written once in its
gradient. The forward keeps the hidden states, the head and one number a token, the log-sum-exp (a running one, over the
tiles, as in Milakov & Gimelshein 2018); the backward computes each tile's logits again. Softmax and sums are float32;
the matrix products run in the dtype of `hidden` and accumulate in float32.

On a mesh (`jax.set_mesh`) the vocabulary is split over the axes that store the head, and the chunk's hidden states are
gathered instead of the head: no device holds the whole head or its gradient, and no chunk sums a gradient over devices.
Over fsdp the head is stored by its width: the forward exchanges that for a part of the vocabulary at once; the backward
does so a tile at a time, and gives each tile's gradient back as it is stored, so that neither exists a second time.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from care_jax.hardware import platform, precision

# Mesh axes (care_jax.sharding) that rows, and so tokens, are spread over; and those that hold the head's weights.
TOKEN_AXES = ("data", "fsdp")
HEAD_AXES = ("tensor", "fsdp")
WIDTH_AXIS = "fsdp"  # the one of them that splits the head's width as it is stored
# The vocabulary of which `chunk` tokens' logits may exist at once; of a larger one they are as many. A CPU works on
# tiles that its caches hold (8 MiB of logits at the usual chunk); an accelerator wants few and large products.
COLUMNS = 32768
_CPU_COLUMNS = 2048
_CHUNK = 1024
# Tokens that go through together, in units of `chunk`; of more, pieces follow each other. Fewer where devices gather
# them: each then holds the hidden states of all.
TOGETHER = 8
TOGETHER_GATHERED = 4
_LANES = 128  # tiles are multiples of a TPU's lanes, where the vocabulary is that large


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

    @property
    def exchanged(self) -> tuple[str, ...]:
        """Where the stored head is split by width and the computed one by vocabulary."""
        return tuple(axis for axis in self.vocabulary if axis == WIDTH_AXIS)

    def count(self, axes: tuple[str, ...]) -> int:
        return math.prod(dict(self.sizes)[axis] for axis in axes)


def _layout(vocabulary: int, width: int) -> _Layout:
    """The layout on the mesh in context; axes that do not divide the vocabulary (or the width) do not split it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind == AxisType.Manual for kind in mesh.axis_types):
        return _Layout()
    sizes = {axis: mesh.shape[axis] for axis in mesh.axis_names if mesh.shape[axis] > 1}
    split = tuple(axis for axis in HEAD_AXES if axis in sizes and (axis != WIDTH_AXIS or width % sizes[axis] == 0))
    while split and vocabulary % math.prod(sizes[axis] for axis in split):
        split = split[:-1]
    return _Layout(tuple(axis for axis in TOKEN_AXES if axis in sizes), split, tuple(sizes.items()))


def hidden_at(hidden: Float[Array, "B T d"], places: Int[Array, " C"]) -> Float[Array, "C_padded d"]:
    """The hidden states at flat places (row * T + column), as `completion_logps` takes them.

    On a mesh the rows lie over devices, and so do the tokens that come back, each device's own in turn: every device
    sends what it holds of them, a piece after the other, so that none ever holds all C. C is padded to a multiple of
    those devices with the first place.
    """
    layout = _layout(1, hidden.shape[-1])
    shards = layout.count(layout.tokens)
    places = jnp.pad(places, (0, -places.shape[0] % shards))
    if shards == 1 or places.shape[0] == 0:
        return hidden.reshape(-1, hidden.shape[-1])[places]
    own = places.shape[0] // shards
    pieces = max(1, -(-places.shape[0] // (TOGETHER_GATHERED * _CHUNK)))
    size = -(-own // pieces)
    # [pieces, of every device its next `size`]
    turns = jnp.pad(places.reshape(shards, own), ((0, 0), (0, pieces * size - own)))
    turns = turns.reshape(shards, pieces, size).swapaxes(0, 1).reshape(pieces, shards * size)

    def take(hidden: Array, turns: Array) -> Array:
        held = hidden.reshape(-1, hidden.shape[-1])
        first = jax.lax.axis_index(layout.tokens) * held.shape[0]

        @jax.checkpoint  # nothing of a piece is kept for the backward pass but its places
        def piece(part: tuple[Array, ...]) -> Array:
            (places,) = part
            mine = (places >= first) & (places < first + held.shape[0])
            found = jnp.where(mine[:, None], held[jnp.where(mine, places - first, 0)], 0)
            return jax.lax.psum_scatter(found, layout.tokens, tiled=True)

        return _map(piece, (turns,)).reshape(-1, held.shape[1])[:own]

    rows = PartitionSpec(layout.tokens)
    return jax.shard_map(take, in_specs=(rows, PartitionSpec()), out_specs=rows)(hidden, turns)


def completion_logps(
    hidden: Float[Array, "C d"],
    head: Float[Array, "V d"],
    targets: Int[Array, " C"],
    *,
    soft_cap: float | None = None,
    chunk: int = _CHUNK,
    frozen_head: bool = False,
) -> Float[Array, " C"]:
    """log p(target) of each token, float32, in nats.

    `hidden` [C, d] are the states that predict the targets, in the compute dtype; `head` [V, d]; `targets` [C] ids in
    0..V-1. `soft_cap`: logits become cap tanh(logits / cap) first (Gemma 2). `chunk`: no device holds more logits at
    once than those of `chunk` tokens over V, or over 32,768 where V is larger: memory does not grow with it further.
    The gradient of `head` accumulates in float32 and comes back in its dtype. `frozen_head`: the head gets no gradient,
    and that of `hidden` is formed in the forward pass, so that the backward only scales it (no logits are computed
    twice).
    """
    count, vocabulary = hidden.shape[0], head.shape[0]
    if count == 0:
        return jnp.zeros((0,), jnp.float32)
    layout = _layout(vocabulary, hidden.shape[1])
    shards = layout.count(layout.tokens)
    own = -(-count // shards)
    gathered = own * layout.count(layout.shared)
    pieces = -(-gathered // ((TOGETHER_GATHERED if layout.shared else TOGETHER) * chunk))
    most = _CPU_COLUMNS if platform() == "cpu" else COLUMNS
    columns = max(1, chunk * min(vocabulary, most) // -(-gathered // pieces))
    # Padded tokens score target 0; their values are cut off, and their cotangents are 0.
    padding = shards * own - count
    hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
    ids = jnp.pad(targets.astype(jnp.int32), (0, padding))
    score = _frozen if frozen_head else _trained
    return score(hidden, head, ids, _Setting(layout, pieces, columns, soft_cap))[:count]


class _Setting(NamedTuple):
    """What is static: the layout, pieces a device's tokens are cut into, columns of a tile at most, the soft cap."""

    layout: _Layout
    pieces: int
    columns: int
    soft_cap: float | None


def _spread(function: Any, setting: _Setting, inputs: str, outputs: str) -> Any:
    """`function` of each device's part: "t" is split over tokens, "h" as the head is stored. On one device, itself."""
    layout = setting.layout
    function = functools.partial(function, setting)
    if not layout.sizes:
        return function
    rows = tuple(axis for axis in layout.vocabulary if axis not in layout.exchanged)
    head = PartitionSpec(rows or None, layout.exchanged or None)
    specs = {"t": PartitionSpec(layout.tokens or None), "h": head}
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


class _Part(NamedTuple):
    """This device's part of the vocabulary, of `size` rows. take(first, count): that many of the head's, [count, d]."""

    size: int
    take: Callable[[Any, int], Array]


def _stored(setting: _Setting, weights: Array) -> Array:
    """What a device stores of the head as [devices, rows that each of them works on, own width]."""
    return weights.reshape(setting.layout.count(setting.layout.exchanged), -1, weights.shape[1])


def _part(setting: _Setting, weights: Array) -> _Part:
    """The part exchanged whole: one array besides the stored one, of which tiles alone are laid out anew."""
    axes, whole = setting.layout.exchanged, _stored(setting, weights)
    if axes:
        whole = jax.lax.all_to_all(whole, axes, 0, 0, tiled=True)

    def take(first: Any, count: int) -> Array:
        tile = jax.lax.dynamic_slice_in_dim(whole, first, count, 1)
        return (
            with_layout_constraint(tile, Layout((0, 1, 2))).transpose(1, 0, 2).reshape(count, -1) if axes else tile[0]
        )

    return _Part(whole.shape[1], take)


def _part_by_tiles(setting: _Setting, weights: Array) -> _Part:
    """The part exchanged a tile at a time."""
    axes, stored = setting.layout.exchanged, _stored(setting, weights)

    def take(first: Any, count: int) -> Array:
        tile = jax.lax.dynamic_slice_in_dim(stored, first, count, 1)
        return (jax.lax.all_to_all(tile, axes, 0, 2, tiled=True) if axes else tile)[0]

    return _Part(stored.shape[1], take)


class _Tile(NamedTuple):
    """Columns of this device's vocabulary. first: of the slice, in it; fresh: the column from which on they are new
    (the last tile begins early enough to be as wide as the others), None where all are.
    """

    first: Array
    fresh: Array | None
    weights: Array  # [columns, d]


def _over_tiles(setting: _Setting, part: _Part, function: Any, carry: Any) -> Any:
    """function(carry, tile) -> carry over the tiles of a part of the vocabulary; no loop where there is only one."""
    vocabulary = part.size
    count = -(-vocabulary // min(setting.columns, vocabulary))
    size = -(-vocabulary // count)
    if size > _LANES and count > 1:
        size = -(-size // _LANES) * _LANES
        count = -(-vocabulary // size)
    if count == 1:
        return function(carry, _Tile(jnp.zeros((), jnp.int32), None, part.take(0, vocabulary)))

    def one(number: Array, carry: Any) -> Any:
        fresh = number * size
        first = jnp.minimum(fresh, vocabulary - size)
        return function(carry, _Tile(first, fresh - first if vocabulary % size else None, part.take(first, size)))

    return jax.lax.fori_loop(0, count, one, carry)


def _columns(tile: _Tile, tokens: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, (tokens, tile.weights.shape[0]), 1)


def _is_target(setting: _Setting, ids: Array, tile: _Tile, vocabulary: int) -> Array:
    """[tokens, columns] bool, by comparison: a gather would need the whole vocabulary."""
    axes = setting.layout.vocabulary
    first = jax.lax.axis_index(axes) * vocabulary if axes else 0
    columns = _columns(tile, ids.shape[0])
    found = (ids - first - tile.first)[:, None] == columns
    return found if tile.fresh is None else found & (columns >= tile.fresh)


def _einsum(how: str, a: Array, b: Array) -> Array:
    """A product summed in float32."""
    return jnp.einsum(how, a, b, precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _logits(setting: _Setting, hidden: Array, tile: _Tile) -> Array:
    """[tokens, columns] float32, soft-capped; minus infinity where another tile has them."""
    logits = _einsum("td,vd->tv", hidden, tile.weights)
    if setting.soft_cap is not None:
        logits = setting.soft_cap * jnp.tanh(logits / setting.soft_cap)
    return logits if tile.fresh is None else jnp.where(_columns(tile, hidden.shape[0]) < tile.fresh, -jnp.inf, logits)


def _slope(setting: _Setting, values: Array, logits: Array) -> Array:
    """Gradients with respect to capped logits made those with respect to the logits before the cap."""
    if setting.soft_cap is None:
        return values
    # Where another tile has the logit, values are 0 and so must this be.
    return jnp.where(values == 0, 0.0, values * (1.0 - jnp.square(logits / setting.soft_cap)))


def _product(gradient: Array, weights: Array) -> Array:
    """[tokens, columns] with [columns, d] -> [tokens, d] float32, in the weights' dtype."""
    return _einsum("tv,vd->td", gradient.astype(weights.dtype), weights)


def _score(setting: _Setting, hidden: Array, part: _Part, ids: Array, slopes: bool = False) -> tuple[Array, ...]:
    """(log p(target), log-sum-exp) [tokens]; slopes: also d log p / d hidden [tokens, d], of this device's columns."""
    axes, tokens = setting.layout.vocabulary, hidden.shape[0]

    def add(carry: Any, tile: _Tile) -> Any:
        top, total, hit, *rest = carry
        logits = _logits(setting, hidden, tile)
        target = _is_target(setting, ids, tile, part.size)
        higher = jnp.maximum(top, jnp.max(logits, axis=-1))
        rescale = jnp.exp(top - higher)
        exponentials = jnp.exp(logits - higher[:, None])
        total = total * rescale + jnp.sum(exponentials, axis=-1)
        hit = hit + jnp.sum(jnp.where(target, logits, 0.0), axis=-1)
        if rest:
            expected, own = rest
            expected = expected * rescale[:, None] + _product(_slope(setting, exponentials, logits), tile.weights)
            own = own + _product(_slope(setting, jnp.where(target, 1.0, 0.0), logits), tile.weights)
            rest = [expected, own]
        return (higher, total, hit, *rest)

    zeros = jnp.zeros((tokens,), jnp.float32)
    wide = [jnp.zeros(hidden.shape, jnp.float32)] * 2 if slopes else []
    top, total, hit, *rest = _over_tiles(setting, part, add, (zeros - jnp.inf, zeros, zeros, *wide))
    highest = jax.lax.pmax(top, axes) if axes else top
    total = _summed(axes, total * jnp.exp(top - highest))
    lse = highest + jnp.log(total)
    logps = _summed(axes, hit) - lse
    if not slopes:
        return logps, lse
    expected, own = rest
    return logps, lse, own - expected * (jnp.exp(top - highest) / total)[:, None]


def _to_hidden(setting: _Setting, partial: Array) -> Array:
    """A piece's gradient with respect to this device's hidden states of it, summed over the vocabulary."""
    layout = setting.layout
    partial = _summed(tuple(axis for axis in layout.vocabulary if axis not in layout.shared), partial)
    return jax.lax.psum_scatter(partial, layout.shared, tiled=True) if layout.shared else partial


def _forward(setting: _Setting, hidden: Array, weights: Array, ids: Array) -> tuple[Array, Array]:
    """(log p(target), log-sum-exp) of this device's tokens."""
    part = _part(setting, weights)

    def piece(inputs: Any) -> tuple[Array, Array]:
        hidden_c, ids_c = (_gathered(setting, x) for x in inputs)
        logps, lse = _score(setting, hidden_c, part, ids_c)
        return _own(setting, logps), _own(setting, lse)

    logps, lse = _map(piece, _cut(setting, hidden, ids))
    return _joined(ids, logps), _joined(ids, lse)


def _map(function: Any, pieces: tuple[Array, ...]) -> Any:
    """`function` of each piece; no loop where there is only one."""
    if pieces[0].shape[0] > 1:
        return jax.lax.map(function, pieces)
    return jax.tree.map(lambda x: x[None], function(tuple(x[0] for x in pieces)))


def _backward(
    setting: _Setting, hidden: Array, weights: Array, ids: Array, lse: Array, cotangent: Array, dtype: Any
) -> tuple[Array, Array]:
    """Gradients of this device's hidden states, and of the part of the head that it stores, `weights`."""
    axes, part = setting.layout.exchanged, _part_by_tiles(setting, weights)
    pieces = _cut(setting, hidden, ids, lse, cotangent)

    def as_stored(gradient: Array) -> Array:
        """A tile's [d, columns] -> [devices, columns, own width]."""
        rows = gradient.T[None]
        return jax.lax.all_to_all(rows, axes, 2, 0, tiled=True) if axes else rows

    def tile_gradients(carry: Any, tile: _Tile) -> Any:
        """Tiles outside, pieces inside: the float32 sum over all tokens is no larger than a tile of the head."""

        def piece(number: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            inputs = (jax.lax.dynamic_index_in_dim(x, number, 0, keepdims=False) for x in pieces)
            hidden_c, ids_c, lse_c, cotangent_c = (_gathered(setting, x) for x in inputs)
            logits = _logits(setting, hidden_c, tile)
            target = _is_target(setting, ids_c, tile, part.size)
            gradient = jnp.where(target, 1.0, 0.0) - jnp.exp(logits - lse_c[:, None])
            gradient = (_slope(setting, gradient, logits) * cotangent_c[:, None]).astype(hidden.dtype)
            # The small operand is the one that is transposed, and really so: folded into the product, it is half as
            # fast on a CPU.
            across = jax.lax.optimization_barrier(hidden_c.T)
            own = _einsum("dt,tv->dv", across, gradient)
            head_gradient, hidden_gradient = carry
            through = _to_hidden(setting, _product(gradient, tile.weights))
            held = jax.lax.dynamic_index_in_dim(hidden_gradient, number, 0, keepdims=False) + through
            return head_gradient + own, jax.lax.dynamic_update_index_in_dim(hidden_gradient, held, number, 0)

        head_gradient, hidden_gradient = carry
        inner = jnp.zeros(tile.weights.shape[::-1], jnp.float32), hidden_gradient
        if setting.pieces == 1:
            own, hidden_gradient = piece(0, inner)
        else:
            own, hidden_gradient = jax.lax.fori_loop(0, setting.pieces, piece, inner)
        own = as_stored(own.astype(head_gradient.dtype))
        if own.shape != head_gradient.shape:
            # Columns that two tiles have are 0 in one of them.
            own = own + jax.lax.dynamic_slice_in_dim(head_gradient, tile.first, own.shape[1], 1)
            own = jax.lax.dynamic_update_slice_in_dim(head_gradient, own, tile.first, 1)
        return own, hidden_gradient

    # Devices that hold the same rows of the head and other tokens: summed once, after all tiles.
    others = tuple(axis for axis in setting.layout.tokens if axis not in setting.layout.shared)
    head_gradient = jnp.zeros(_stored(setting, weights).shape, jnp.float32 if others else dtype)
    carry = head_gradient, jnp.zeros(pieces[0].shape, jnp.float32)
    head_gradient, hidden_gradient = _over_tiles(setting, part, tile_gradients, carry)
    hidden_gradient = _joined(ids, hidden_gradient).astype(hidden.dtype)
    return hidden_gradient, _summed(others, head_gradient).reshape(weights.shape).astype(dtype)


def _forward_slopes(setting: _Setting, hidden: Array, weights: Array, ids: Array) -> tuple[Array, Array]:
    """(log p(target), its gradient with respect to the hidden state) of this device's tokens."""
    part = _part(setting, weights)

    def piece(inputs: Any) -> tuple[Array, Array]:
        hidden_c, ids_c = (_gathered(setting, x) for x in inputs)
        logps, _, slopes = _score(setting, hidden_c, part, ids_c, slopes=True)
        return _own(setting, logps), _to_hidden(setting, slopes).astype(hidden.dtype)

    logps, slopes = _map(piece, _cut(setting, hidden, ids))
    return _joined(ids, logps), _joined(ids, slopes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _trained(hidden: Array, head: Array, ids: Array, setting: _Setting) -> Array:
    return _spread(_forward, setting, "tht", "tt")(hidden, head.astype(hidden.dtype), ids)[0]


def _trained_forward(hidden: Array, head: Array, ids: Array, setting: _Setting) -> tuple[Array, Any]:
    logps, lse = _spread(_forward, setting, "tht", "tt")(hidden, head.astype(hidden.dtype), ids)
    return logps, (hidden, head, ids, lse)


def _trained_backward(setting: _Setting, saved: Any, cotangent: Array) -> tuple[Array, Array, None]:
    hidden, head, ids, lse = saved
    weights = head.astype(hidden.dtype)
    run = _spread(functools.partial(_backward, dtype=head.dtype), setting, "thttt", "th")
    hidden_gradient, head_gradient = run(hidden, weights, ids, lse, cotangent)
    return hidden_gradient, head_gradient, None


_trained.defvjp(_trained_forward, _trained_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _frozen(hidden: Array, head: Array, ids: Array, setting: _Setting) -> Array:
    return _trained(hidden, head, ids, setting)


def _frozen_forward(hidden: Array, head: Array, ids: Array, setting: _Setting) -> tuple[Array, Array]:
    return _spread(_forward_slopes, setting, "tht", "tt")(hidden, head.astype(hidden.dtype), ids)


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
