"""Generation: batches of prompts through the same block with a cache of keys and values.

What a prompt is answered depends on its own seed alone: randomness is keyed by (seed, token number), never by the place
in a batch. Rows are padded behind the prompt, and padding is seen by nobody.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from care_jax import sharding
from care_jax.distributed import to_host
from care_jax.errors import UserError
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder, empty_cache, logits_of


def _width(longest: int) -> int:
    """Prompts are padded to a multiple of 16, long ones of up to a quarter of their length: few lengths to compile."""
    step = max(16, 1 << max(0, (longest - 1).bit_length() - 3))
    return -(-longest // step) * step


@dataclasses.dataclass(frozen=True)
class GeneratedAnswer:
    """The tokens after the prompt, without the stop token; finish_reason as in OpenAI's interface."""

    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


def eos_ids(folder: str | pathlib.Path) -> tuple[int, ...]:
    """The ids that end generation by generation_config.json and config.json of a model folder."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = pathlib.Path(folder) / name
        if file.is_file():
            ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return tuple(sorted(found))


def nucleus(logits: Float[Array, "B V"], top_p: Float[Array, ""] | float) -> Float[Array, "B V"]:
    """Keeps the smallest set of likeliest tokens whose probability reaches `top_p` (Holtzman et al. 2020)."""
    order = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    before = jnp.cumsum(jax.nn.softmax(order, axis=-1), axis=-1) - jax.nn.softmax(order, axis=-1)
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    floor = jnp.take_along_axis(order, jnp.maximum(last, 0), axis=-1)
    return jnp.where(logits >= floor, logits, -jnp.inf)


@functools.partial(jax.jit, static_argnames=("model", "max_tokens", "greedy", "cut", "stop_ids"))
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
    cut: bool,
    stop_ids: tuple[int, ...],
) -> Int[Array, "B N"]:
    """The tokens after each prompt, stop token included, -1 behind it. Rows of length 0 are padding."""
    batch, width = tokens.shape
    variables = jax.tree.map(lambda x: x.astype(model.dtype), variables)  # once, not at every token
    keys = jax.vmap(jax.random.key)(seeds)
    cache = empty_cache(model.arch, batch, width + max_tokens, model.dtype)
    cached_axes = ("layers", "rows", None, "kv_heads", None)
    cache = dataclasses.replace(
        cache,
        keys=sharding.constrain(cache.keys, cached_axes),
        values=sharding.constrain(cache.values, cached_axes),
    )

    def choose(hidden: jax.Array, number: jax.Array) -> jax.Array:
        logits = logits_of(model.arch, variables["params"], hidden[:, None])[:, 0]
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits / temperature
        if cut:
            logits = nucleus(logits, top_p)
        each = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        return jax.vmap(jax.random.categorical)(each, logits).astype(jnp.int32)

    def stops(token: jax.Array) -> jax.Array:
        return jnp.isin(token, jnp.asarray(stop_ids, jnp.int32)) if stop_ids else jnp.zeros(batch, bool)

    places = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], tokens.shape)
    segments = (places < lengths[:, None]).astype(jnp.int32)
    decoded: Any = model.apply(variables, tokens, places, segments, cache, method="decode")
    hidden, cache = decoded
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    token = choose(jnp.take_along_axis(hidden, last, axis=1)[:, 0], jnp.int32(0))
    done = lengths == 0
    out = jnp.full((batch, max_tokens), -1, jnp.int32).at[:, 0].set(jnp.where(done, -1, token))

    def more(state: tuple[Any, ...]) -> jax.Array:
        number, _, done, _, _ = state
        return (number < max_tokens) & ~jnp.all(done)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        number, token, done, out, cache = state
        positions = (lengths + number - 1)[:, None]
        hidden, cache = model.apply(
            variables, token[:, None], positions, jnp.ones((batch, 1), jnp.int32), cache, method="decode"
        )
        token = choose(hidden[:, 0], number)
        out = out.at[:, number].set(jnp.where(done, -1, token))
        return number + 1, token, done | stops(token), out, cache

    state = (jnp.int32(1), token, done | stops(token), out, cache)
    return jax.lax.while_loop(more, step, state)[3]


def _spread(x: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """The rows of a host array over the mesh; every process gives the same array and keeps its own rows."""
    if mesh is None:
        return jnp.asarray(x)
    placed = sharding.sharding(mesh, ("rows", *[None] * (x.ndim - 1)), x.shape, "generate: batch_size")
    return jax.make_array_from_callback(x.shape, placed, lambda index: x[index])


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
    """Answers to prompts of token ids, in their order, a batch at a time.

    temperature 0 is greedy. seeds: one a prompt (default its number). On a mesh a batch's rows are spread over data and
    fsdp, which `batch_size` must divide by. Raises UserError for an empty prompt or settings out of range.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"generate: prompt {number} is empty; give it a BOS token at least")
        if not 0 <= min(prompt) <= max(prompt) < model.arch.vocab_size:
            raise UserError(
                f"generate: prompt {number} holds ids {min(prompt)} to {max(prompt)}; the model has 0 to "
                f"{model.arch.vocab_size - 1} (config.json: vocab_size)"
            )
    if max_tokens < 1 or batch_size < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"generate: max_tokens {max_tokens} and batch_size {batch_size} are at least 1, temperature {temperature} "
            f"at least 0, top_p {top_p} above 0 and at most 1"
        )
    numbers = range(len(prompts)) if seeds is None else seeds
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    stop = tuple(sorted({int(one) for one in stop_ids}))
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        width = _width(max(len(row) for row in rows))
        tokens = np.zeros((batch_size, width), np.int32)
        lengths = np.zeros(batch_size, np.int32)
        row_seeds = np.zeros(batch_size, np.int32)
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = row
            lengths[place] = len(row)
            row_seeds[place] = numbers[start + place]
        arrays = tuple(_spread(x, mesh) for x in (tokens, lengths, row_seeds))
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            out = _answer_batch(
                model,
                variables,
                *arrays,
                jnp.float32(temperature),
                jnp.float32(top_p),
                max_tokens=max_tokens,
                greedy=temperature == 0,
                cut=top_p < 1,
                stop_ids=stop,
            )
        for made in to_host(out)[: len(rows)]:
            answer = tuple(int(token) for token in itertools.takewhile(lambda token: token >= 0, made))
            stopped = bool(answer) and answer[-1] in stop
            yield GeneratedAnswer(answer[:-1] if stopped else answer, "stop" if stopped else "length")
