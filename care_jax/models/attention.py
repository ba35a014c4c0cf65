"""Causal attention over packed rows: segments, shared prompts, windows, soft caps; one signature, several programs."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from care_jax import hardware
from care_jax.distributed import is_writer
from care_jax.errors import UserError, nearest
from care_jax.hardware import precision
from care_jax.models import kernels

IMPLEMENTATIONS = ("auto", "xla", "xla_chunked", *kernels.KERNELS)

# Rows up to _DENSE_LENGTH hold the scores of a piece of queries at once; longer ones go through in chunks of queries.
CHUNK = 512
_CACHED = 128  # so many queries' scores a CPU's caches hold: its chunks are no larger
# A row's queries go through in pieces, each spared the keys behind its end. XLA may hold the scores of a chunk of every
# piece at once, so that there are as many as together have this many queries in their chunks.
_DENSE_LENGTH = 1024
_LENGTHS = {"xla": "of up to", "xla_chunked": "of more than"}


def check(implementation: str, head_dim: int, soft_cap: float | None) -> None:
    """UserError for a name that is none, or a kernel that no row of this model can go through."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"model.attention: {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}"
            + nearest(implementation, IMPLEMENTATIONS)
        )
    reason = kernels.unfit(implementation, head_dim, soft_cap)
    if reason is not None:
        raise _refused(implementation, reason)


def check_platform(implementation: str) -> None:
    """UserError for a kernel of another machine than this one (or the mesh in context)."""
    reason = kernels.wrong_platform(implementation) if implementation in kernels.KERNELS else None
    if reason is not None:
        raise _refused(implementation, reason)


def _refused(implementation: str, reason: str) -> UserError:
    return UserError(
        f"model.attention: {implementation} cannot serve: {reason} (model.attention: auto chooses one that can)"
    )


def choose(implementation: str, *, length: int, head_dim: int, soft_cap: float | None, **call: Any) -> str:
    """The program for rows of this length; `call`: the further arguments of `kernels.refusal`.

    `auto` is splash on a TPU where it can serve, else plain XLA: at once in short rows, in chunks in long ones. It says
    on stderr what it is, once a choice. UserError for an unknown name, and for a kernel that cannot serve.
    """
    check(implementation, head_dim, soft_cap)
    if implementation in kernels.KERNELS:
        reason = kernels.refusal(implementation, length=length, **call)
        if reason is not None:
            raise _refused(implementation, reason)
    if implementation != "auto":
        return implementation
    plain = "xla" if length <= _DENSE_LENGTH else "xla_chunked"
    platform = hardware.platform()
    if platform != "tpu":
        # The GPU's kernel takes neither shared prompts nor windows, so that it serves few runs: by name only.
        _say(f"attention: auto is {plain} on {platform}, in rows {_LENGTHS[plain]} {_DENSE_LENGTH}")
        return plain
    reason = kernels.refusal("splash", length=length, **call)
    if reason is None:
        _say("attention: auto is splash on tpu")
        return "splash"
    _say(f"attention: auto is {plain} on tpu, in rows of {length}: splash cannot serve: {reason}")
    return plain


@functools.cache
def _say(line: str) -> None:
    if is_writer():
        print(line, file=sys.stderr, flush=True)


def visible(
    rows: Int[Array, " T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    prompt_segment_ids: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    key_segment_ids: Int[Array, "B S"],
    window: int | None,
) -> Bool[Array, "B T S"]:
    """May query i (at place `rows[i]` of its row) see key j.

    Yes where j <= i in the row, j is of i's segment or of its prompt's, and, in a local layer, lies less than `window`
    positions back. A query always sees itself, so that padding (segment 0) stays finite.
    """
    causal = jnp.arange(key_positions.shape[1])[None, None, :] <= rows[None, :, None]
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
    """Scores and softmax in float32; key head h serves the query heads h*G .. h*G+G-1."""
    b, t, h, d = q.shape
    groups, length = h // k.shape[2], k.shape[1]
    # One product a key head, its query heads as further rows: no score is ever transposed.
    rows = q.reshape(b, t, -1, groups, d).transpose(0, 2, 3, 1, 4).reshape(b, -1, groups * t, d)
    scores = jnp.einsum("bkrd,bskd->bkrs", rows, k, precision=precision(q.dtype), preferred_element_type=jnp.float32)
    scores = scores * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    # Added, not chosen between: a CPU takes twice as long for a choice. A score is far smaller than the sum's step.
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
    """Attention of every query over the keys it may see (`visible`); K divides H.

    prompt_segment_ids: None where no prompt is shared. Without a cache the keys are the row's own (S = T). With one,
    `key_positions` and `key_segment_ids` describe its S places, query 0 stands at place `offset`, and the program is
    always XLA's. Raises UserError for an implementation that is unknown or cannot serve.
    """
    length = q.shape[1]
    cached = key_positions is not None and key_segment_ids is not None
    if not cached:
        shared = prompt_segment_ids is not None
        implementation = choose(
            implementation,
            length=length,
            head_dim=q.shape[3],
            rows=q.shape[0],
            window=window,
            soft_cap=soft_cap,
            shared_prompts=shared,
            dtype=q.dtype,
        )
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
    whole = implementation == "xla" or length <= CHUNK
    chunk = min(CHUNK, _CACHED) if whole or hardware.platform() == "cpu" else CHUNK

    def piece(start: int, stop: int) -> jax.Array:
        mine = [x[start:stop] if x.ndim == 1 else x[:, start:stop] for x in queries]
        theirs = [x if cached else x[:, :stop] for x in keys]
        return _piece(dense, mine, theirs, window, None if whole else chunk)

    if cached:
        return piece(0, length)
    step = -(-length // _DENSE_LENGTH) * chunk
    pieces = [piece(start, min(start + step, length)) for start in range(0, length, step)]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)


def _piece(
    dense: Callable[..., jax.Array],
    queries: Sequence[jax.Array],
    keys: Sequence[jax.Array],
    window: int | None,
    chunk: int | None,
) -> Float[Array, "B T H D"]:
    """Some queries over some keys: at once (None), or a chunk of queries after the other.

    Scores are computed again in the backward pass: keeping [H, T, S] of every layer costs more than that.
    """
    q, rows, positions, segment_ids, prompt_segment_ids = queries
    k, v, key_positions, key_segment_ids = keys
    length = q.shape[1]
    if chunk is None or length <= chunk:
        mask = visible(rows, positions, segment_ids, prompt_segment_ids, key_positions, key_segment_ids, window)
        return jax.checkpoint(dense, prevent_cse=False)(q, k, v, mask)
    chunks = -(-length // chunk)
    pad = chunks * chunk - length

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(part: tuple[jax.Array, ...]) -> jax.Array:
        q, rows, positions, segment_ids, prompt_segment_ids = part
        return dense(
            q, k, v, visible(rows, positions, segment_ids, prompt_segment_ids, key_positions, key_segment_ids, window)
        )

    places = jnp.pad(rows, (0, pad)).reshape(chunks, chunk)
    out = jax.lax.map(one, (split(q), places, split(positions), split(segment_ids), split(prompt_segment_ids)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], chunks * chunk, *q.shape[2:])[:, :length]
