"""Causal attention over packed rows, with segments, shared prompts, windows and soft caps.

One signature serves several programs: XLA's own, at once or in chunks of queries, and the kernels of `kernels`.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from care_jax import hardware
from care_jax.distributed import say
from care_jax.errors import UserError, nearest
from care_jax.hardware import precision
from care_jax.models import kernels

IMPLEMENTATIONS = ("auto", "xla", "xla_chunked", *kernels.KERNELS)

# `xla_chunked` computes the scores of this many queries at a time.
CHUNK = 512
_CPU_CHUNK = 128  # the scores of this many queries fit a CPU's caches
# `auto` takes `xla` for rows up to this length. A row's queries are cut into spans, and a span does not compute scores
# for the keys after its end. XLA may hold the scores of one chunk of every span at once, so the number of spans is
# limited: their chunks together have at most this many queries.
_DENSE_LENGTH = 1024
_LENGTHS = {"xla": "of up to", "xla_chunked": "of more than"}
_say_once = functools.cache(say)


def check(implementation: str, head_dim: int, soft_cap: float | None) -> None:
    """Raises UserError for an unknown name, or a kernel that cannot serve this model whatever its rows."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"model.attention: {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}"
            + nearest(implementation, IMPLEMENTATIONS)
        )
    _refuse(implementation, kernels.unfit(implementation, head_dim, soft_cap))


def check_platform(implementation: str) -> None:
    """Raises UserError for a kernel that does not run on this machine (or on that of the mesh in context)."""
    if implementation in kernels.KERNELS:
        _refuse(implementation, kernels.wrong_platform(implementation))


def _refuse(implementation: str, reason: str | None) -> None:
    """Raises UserError if there is a reason."""
    if reason is not None:
        raise UserError(
            f"model.attention: {implementation} cannot serve: {reason} (model.attention: auto chooses one that can)"
        )


def choose(implementation: str, call: kernels.AttentionCall, head_dim: int, soft_cap: float | None) -> str:
    """Returns the name of the program for these rows.

    `auto` is splash on a TPU if it can serve, else plain XLA: at once in short rows, in chunks in long ones. Each
    choice of `auto` is printed once on stderr. Raises UserError for an unknown name, and a kernel that cannot serve.
    """
    check(implementation, head_dim, soft_cap)
    if implementation in kernels.KERNELS:
        _refuse(implementation, kernels.refusal(implementation, call))
    if implementation != "auto":
        return implementation
    plain = "xla" if call.length <= _DENSE_LENGTH else "xla_chunked"
    platform = hardware.platform()
    if platform != "tpu":
        # The GPU's kernel has neither shared prompts nor windows, so it serves few runs: it is used by name only.
        _say_once(f"attention: auto is {plain} on {platform}, in rows {_LENGTHS[plain]} {_DENSE_LENGTH}")
        return plain
    reason = kernels.refusal("splash", call)
    if reason is None:
        _say_once("attention: auto is splash on tpu")
        return "splash"
    _say_once(f"attention: auto is {plain} on tpu, in rows of {call.length}: splash cannot serve: {reason}")
    return plain


def visible(
    slots: Int[Array, " T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    prompt_segment_ids: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    key_segment_ids: Int[Array, "B S"],
    window: int | None,
) -> Bool[Array, "B T S"]:
    """Returns whether query i (at slot `slots[i]` of its row) may see key j.

    It may if j is not after i in the row, is of i's segment or that of its prompt, and, in a local layer, is less than
    `window` positions before i. A query always sees itself, so that padding (segment 0) stays finite.
    """
    causal = jnp.arange(key_positions.shape[1])[None, None, :] <= slots[None, :, None]
    keys = key_segment_ids[:, None, :]
    mask = causal & ((keys == segment_ids[:, :, None]) | (keys == prompt_segment_ids[:, :, None]))
    if window is not None:
        mask &= positions[:, :, None] - key_positions[:, None, :] < window
    return mask


def _dense(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    mask: Bool[Array, "B T S"],
    soft_cap: float | None,
    scale: float,
) -> Float[Array, "B T H D"]:
    """Attention with all scores at once, in float32; key head h serves the query heads h*G .. h*G+G-1."""
    b, t, h, d = q.shape
    groups, length = h // k.shape[2], k.shape[1]
    # One product per key head, with its query heads as further rows: no score is transposed.
    rows = q.reshape(b, t, -1, groups, d).transpose(0, 2, 3, 1, 4).reshape(b, -1, groups * t, d)
    scores = jnp.einsum("bkrd,bskd->bkrs", rows, k, precision=precision(q.dtype), preferred_element_type=jnp.float32)
    scores = scores * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    # The mask is added: a CPU takes twice as long to select. Scores are far too small to change the large number.
    hidden = jnp.where(mask, 0, 0.5 * jnp.finfo(jnp.float32).min)
    scores = scores.reshape(b, -1, groups, t, length) + hidden[:, None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(b, -1, groups * t, length)
    out = jnp.einsum("bkrs,bskd->bkrd", weights, v, precision=precision(q.dtype))
    return out.reshape(b, -1, groups, t, d).transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    *,
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    prompt_segment_ids: Int[Array, "B T"] | None,
    window: int | None,
    soft_cap: float | None,
    scale: float,
    implementation: str = "auto",
    key_positions: Int[Array, "B S"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    offset: Int[Array, ""] | int = 0,
) -> Float[Array, "B T H D"]:
    """Attention of every query to the keys that it may see (`visible`); K divides H.

    prompt_segment_ids: None if no prompt is shared. Without a cache the keys are those of the row (S = T). With one,
    `key_positions` and `key_segment_ids` describe its S slots, query 0 is at slot `offset`, and the program is always
    XLA's. Raises UserError for an implementation that is unknown or cannot serve.
    """
    length = q.shape[1]
    cached = key_positions is not None and key_segment_ids is not None
    if not cached:
        call = kernels.AttentionCall(q.shape[0], length, window, prompt_segment_ids is not None, q.dtype)
        implementation = choose(implementation, call, q.shape[3], soft_cap)
    if not cached and implementation in kernels.KERNELS:
        return kernels.attend(
            implementation, q, k, v, segment_ids, prompt_segment_ids, window=window, soft_cap=soft_cap, scale=scale
        )
    if key_positions is None or key_segment_ids is None:
        key_positions, key_segment_ids = positions, segment_ids
    if prompt_segment_ids is None:
        prompt_segment_ids = segment_ids
    dense = functools.partial(_dense, soft_cap=soft_cap, scale=scale)
    queries = (q, jnp.arange(length) + offset, positions, segment_ids, prompt_segment_ids)
    keys = (k, v, key_positions, key_segment_ids)
    at_once = implementation == "xla" or length <= CHUNK
    chunk = min(CHUNK, _CPU_CHUNK) if at_once or hardware.platform() == "cpu" else CHUNK

    def attend_span(start: int, stop: int) -> jax.Array:
        span = [x[start:stop] if x.ndim == 1 else x[:, start:stop] for x in queries]
        keys_of_span = [x if cached else x[:, :stop] for x in keys]
        return _attend_in_chunks(dense, span, keys_of_span, window, None if at_once else chunk)

    if cached:
        return attend_span(0, length)
    step = -(-length // _DENSE_LENGTH) * chunk
    spans = [attend_span(start, min(start + step, length)) for start in range(0, length, step)]
    return spans[0] if len(spans) == 1 else jnp.concatenate(spans, axis=1)


def _attend_in_chunks(
    dense: Callable[..., jax.Array],
    queries: Sequence[jax.Array],
    keys: Sequence[jax.Array],
    window: int | None,
    chunk: int | None,
) -> Float[Array, "B T H D"]:
    """Attention of some queries to some keys: one chunk of queries after the other, or all at once (chunk None).

    Scores are computed again in the backward pass: keeping [H, T, S] of every layer would cost more.
    """
    q, slots, positions, segment_ids, prompt_segment_ids = queries
    k, v, key_positions, key_segment_ids = keys
    length = q.shape[1]
    if chunk is None or length <= chunk:
        mask = visible(slots, positions, segment_ids, prompt_segment_ids, key_positions, key_segment_ids, window)
        return jax.checkpoint(dense, prevent_cse=False)(q, k, v, mask)
    chunks = -(-length // chunk)
    pad = chunks * chunk - length

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def attend_chunk(part: tuple[jax.Array, ...]) -> jax.Array:
        q, slots, positions, segment_ids, prompt_segment_ids = part
        mask = visible(slots, positions, segment_ids, prompt_segment_ids, key_positions, key_segment_ids, window)
        return dense(q, k, v, mask)

    chunk_slots = jnp.pad(slots, (0, pad)).reshape(chunks, chunk)
    out = jax.lax.map(
        attend_chunk, (split(q), chunk_slots, split(positions), split(segment_ids), split(prompt_segment_ids))
    )
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], chunks * chunk, *q.shape[2:])[:, :length]
