"""Generation: batches of prompts go through the decoder with a cache of keys and values.

The answer to a prompt depends on its own seed alone: randomness is keyed by (seed, token number), not by the place in
the batch. Rows are padded after the prompt, and no token sees padding.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from care_jax import sharding
from care_jax.distributed import to_host
from care_jax.errors import UserError
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder, KeyValueCache, empty_cache, logits_of


def _width(longest: int) -> int:
    """Returns the padded length of prompts: one of few, as each is compiled (multiples of 16, of more if long)."""
    step = max(16, 1 << max(0, (longest - 1).bit_length() - 3))
    return -(-longest // step) * step


@dataclasses.dataclass(frozen=True)
class GeneratedAnswer:
    """The tokens after the prompt, without the stop token; finish_reason as in OpenAI's interface."""

    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


def eos_ids(folder: str | pathlib.Path) -> tuple[int, ...]:
    """Returns the ids that end generation, from generation_config.json and config.json of a model folder."""
    stop_ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = pathlib.Path(folder) / name
        if file.is_file():
            ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            stop_ids |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return tuple(sorted(stop_ids))


def nucleus(logits: Float[Array, "B V"], top_p: Float[Array, ""] | float) -> Float[Array, "B V"]:
    """Keeps the smallest set of likeliest tokens whose probability reaches `top_p`; the others become -inf.

    Holtzman et al. 2020, arXiv 1904.09751.
    """
    order = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    before = jnp.cumsum(jax.nn.softmax(order, axis=-1), axis=-1) - jax.nn.softmax(order, axis=-1)
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    floor = jnp.take_along_axis(order, jnp.maximum(last, 0), axis=-1)
    return jnp.where(logits >= floor, logits, -jnp.inf)


# The state of the loop over tokens: number of the next token, last token, whether the answer is done, tokens, cache.
_State = tuple[jax.Array, jax.Array, jax.Array, jax.Array, KeyValueCache]


@functools.partial(jax.jit, static_argnames=("model", "max_tokens", "greedy", "use_top_p", "stop_ids"))
def _answer_batch(
    model: Decoder,
    variables: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    seeds: Int[Array, " B"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    *,
    max_tokens: int,
    greedy: bool,
    use_top_p: bool,
    stop_ids: tuple[int, ...],
) -> Int[Array, "B N"]:
    """Returns the tokens after each prompt, with the stop token, then -1. Rows of length 0 are padding."""
    batch, width = tokens.shape
    variables = jax.tree.map(lambda x: x.astype(model.dtype), variables)  # once, not for every token
    keys = jax.vmap(jax.random.key)(seeds)
    cache = empty_cache(model.arch, batch, width + max_tokens, model.dtype)
    cached_axes = ("layers", "rows", None, "kv_heads", None)
    cache = dataclasses.replace(
        cache, keys=sharding.constrain(cache.keys, cached_axes), values=sharding.constrain(cache.values, cached_axes)
    )

    def decode(*inputs: jax.Array | KeyValueCache) -> tuple[jax.Array, KeyValueCache]:
        hidden, new_cache = model.apply(variables, *inputs, method="decode")
        assert isinstance(new_cache, KeyValueCache)
        return hidden, new_cache

    def choose(hidden: jax.Array, number: jax.Array) -> jax.Array:
        logits = logits_of(model.arch, variables["params"], hidden[:, None])[:, 0]
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits / temperature
        if use_top_p:
            logits = nucleus(logits, top_p)
        token_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        return jax.vmap(jax.random.categorical)(token_keys, logits).astype(jnp.int32)

    def stops(token: jax.Array) -> jax.Array:
        return jnp.isin(token, jnp.asarray(stop_ids, jnp.int32)) if stop_ids else jnp.zeros(batch, bool)

    positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    hidden, cache = decode(tokens, positions, segments, cache)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    token = choose(jnp.take_along_axis(hidden, last, axis=1)[:, 0], jnp.int32(0))
    done = lengths == 0
    out = jnp.full((batch, max_tokens), -1, jnp.int32).at[:, 0].set(jnp.where(done, -1, token))

    def unfinished(state: _State) -> jax.Array:
        number, _, done, _, _ = state
        return (number < max_tokens) & ~jnp.all(done)

    def step(state: _State) -> _State:
        number, token, done, out, cache = state
        positions = (lengths + number - 1)[:, None]
        hidden, cache = decode(token[:, None], positions, jnp.ones((batch, 1), jnp.int32), cache)
        token = choose(hidden[:, 0], number)
        out = out.at[:, number].set(jnp.where(done, -1, token))
        return number + 1, token, done | stops(token), out, cache

    state = (jnp.int32(1), token, done | stops(token), out, cache)
    return jax.lax.while_loop(unfinished, step, state)[3]


def spread_rows(x: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """Spreads the rows of a host array over the mesh; every process has the same array and keeps its own rows."""
    if mesh is None:
        return jnp.asarray(x)
    placement = sharding.sharding(mesh, ("rows", *[None] * (x.ndim - 1)), x.shape, "generate: batch_size")
    return jax.make_array_from_callback(x.shape, placement, lambda index: x[index])


def generate(
    model: Decoder,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    lora: Params | None = None,
    batch_size: int = 16,
    mesh: Mesh | None = None,
) -> Iterator[GeneratedAnswer]:
    """Yields the answers to prompts of token ids, in order, computed one batch at a time.

    temperature 0 is greedy. seeds: one per prompt (default: its number). On a mesh the rows of a batch are spread over
    the axes data and fsdp, by which `batch_size` must divide. Raises UserError for an empty prompt, ids that the model
    does not have, and settings out of range.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"generate: prompt {number} is empty; it needs a BOS token at least")
        if not 0 <= min(prompt) <= max(prompt) < model.arch.vocab_size:
            raise UserError(
                f"generate: prompt {number} holds ids {min(prompt)} to {max(prompt)}; the model has 0 to "
                f"{model.arch.vocab_size - 1} (config.json: vocab_size)"
            )
    if max_tokens < 1 or batch_size < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"generate: max_tokens ({max_tokens}) and batch_size ({batch_size}) must be at least 1, temperature "
            f"({temperature}) at least 0, top_p ({top_p}) above 0 and at most 1"
        )
    seed_of = range(len(prompts)) if seeds is None else seeds
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    stop = tuple(sorted({int(stop_id) for stop_id in stop_ids}))
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        width = _width(max(len(row) for row in rows))
        tokens = np.zeros((batch_size, width), np.int32)
        lengths = np.zeros(batch_size, np.int32)
        row_seeds = np.zeros(batch_size, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            lengths[i] = len(row)
            row_seeds[i] = seed_of[start + i]
        arrays = tuple(spread_rows(x, mesh) for x in (tokens, lengths, row_seeds))
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            out = _answer_batch(
                model,
                variables,
                *arrays,
                jnp.float32(temperature),
                jnp.float32(top_p),
                max_tokens=max_tokens,
                greedy=temperature == 0,
                use_top_p=top_p < 1,
                stop_ids=stop,
            )
        for row_tokens in to_host(out)[: len(rows)]:
            answer = tuple(int(token) for token in itertools.takewhile(lambda token: token >= 0, row_tokens))
            stopped = bool(answer) and answer[-1] in stop
            yield GeneratedAnswer(answer[:-1] if stopped else answer, "stop" if stopped else "length")
