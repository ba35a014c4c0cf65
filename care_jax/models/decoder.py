"""The decoder: a Flax module around pure functions of the parameter tree.

One block serves every family: what differs is static in `Arch`. Layers are stacked on a leading axis and scanned, so
that compile time does not grow with depth.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from care_jax.errors import UserError
from care_jax.hardware import platform, precision
from care_jax.models import arch as arch_lib
from care_jax.models import attention as attention_lib
from care_jax.models.arch import Arch, LayerKind, Params
from care_jax.models.layers import RopeTable, linear, rms_norm, rope_tables, rotate
from care_jax.sharding import constrain

REMAT = ("none", "dots", "full", "offload")
_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
_Result = TypeVar("_Result")


@flax.struct.dataclass
class KeyValueCache:
    """Keys and values of the tokens so far, for decoding.

    Each row has S slots, filled from slot 0; slots that are not filled have segment 0.
    """

    keys: Float[Array, "L B S K D"]
    values: Float[Array, "L B S K D"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    filled: Int[Array, ""]


def empty_cache(arch: Arch, batch: int, length: int, dtype: DTypeLike) -> KeyValueCache:
    """Returns a cache of `length` slots for each of `batch` rows."""
    shape = (arch.layers, batch, length, arch.kv_heads, arch.head_dim)
    zeros = jnp.zeros((batch, length), jnp.int32)
    return KeyValueCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), zeros, zeros, jnp.zeros((), jnp.int32))


class Decoder(nn.Module):
    """The Flax module: `model.apply({"params": p[, "lora": l]}, tokens, ...)`.

    arch: the model. dtype: compute dtype. remat: none, dots (keeps matrix products), full (keeps each layer's
    input) or offload (keeps matrix products in the host's memory). attention: see `attention.choose`. lora_scale:
    alpha / r of the adapters, None for a model without.
    shared_prompts: False if every token's prompt is in its own segment: then prompt_segment_ids are not read, and
    attention's kernels have less to do.

    positions default to 0..T-1, segment_ids to 1; prompt_segment_ids None means that no prompt is shared
    (`attention.visible`).
    """

    arch: Arch
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    lora_scale: float | None = None
    shared_prompts: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        prompt_segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns the logits in float32, after the final soft cap."""
        params = self._params()
        hidden, _ = self._forward(params, tokens, positions, segment_ids, prompt_segment_ids)
        return logits_of(self.arch, params, hidden)

    @nn.compact
    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        prompt_segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T d"]:
        """Returns the hidden states after the final norm, in the compute dtype."""
        return self._forward(self._params(), tokens, positions, segment_ids, prompt_segment_ids)[0]

    @nn.compact
    def decode(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        cache: KeyValueCache,
    ) -> tuple[Float[Array, "B T d"], KeyValueCache]:
        """Returns the hidden states of the next T tokens of each row, and the cache with these tokens added."""
        hidden, new_cache = self._forward(self._params(), tokens, positions, segment_ids, None, cache)
        assert new_cache is not None
        return hidden, new_cache

    def _params(self) -> Params:
        initial = functools.partial(arch_lib.initial_tree, self.arch)
        declared = arch_lib.declarations(self.arch)
        return {name: self.param(name, initial, jnp.float32, tree) for name, tree in declared.items()}

    def _adapters(self) -> Params | None:
        if not self.has_variable("lora", "blocks"):
            return None
        if self.lora_scale is None:
            raise ValueError("the 'lora' collection needs a model with lora_scale set (care_jax.models.lora.attach)")
        return self.get_variable("lora", "blocks")

    def _forward(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array | None,
        segment_ids: jax.Array | None,
        prompt_segment_ids: jax.Array | None,
        cache: KeyValueCache | None = None,
    ) -> tuple[jax.Array, KeyValueCache | None]:
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        layout = RowLayout(positions, segment_ids, prompt_segment_ids if self.shared_prompts else None)
        return forward(self, params, self._adapters(), tokens, layout, cache)


class RowLayout(NamedTuple):
    """Where each token of the rows belongs; prompt_segment_ids None: no prompt is shared."""

    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    prompt_segment_ids: Int[Array, "B T"] | None


class Layer(NamedTuple):
    """What the scan over layers gives to one block: its weights, adapters, index into `Arch.kinds`, and number."""

    weights: Params
    adapters: Params | None
    kind: Int[Array, "..."]
    number: Int[Array, "..."]


def forward(
    model: Decoder,
    params: Params,
    adapters: Params | None,
    tokens: Int[Array, "B T"],
    layout: RowLayout,
    cache: KeyValueCache | None = None,
) -> tuple[Float[Array, "B T d"], KeyValueCache | None]:
    """Returns the hidden states after the final norm, in the compute dtype, and the cache with the tokens added.

    Weights are rounded to the compute dtype where they are used.
    """
    arch, dtype = model.arch, model.dtype
    if cache is not None:
        cache = dataclasses.replace(
            cache,
            positions=jax.lax.dynamic_update_slice(cache.positions, layout.positions, (0, cache.filled)),
            segment_ids=jax.lax.dynamic_update_slice(cache.segment_ids, layout.segment_ids, (0, cache.filled)),
        )

    x = params["embed"]["weight"][tokens].astype(dtype)  # looked up first: frequent tokens' gradients sum unrounded
    if arch.embed_scale is not None:
        x = x * jnp.asarray(arch.embed_scale, dtype)  # rounded to dtype first, as the checkpoints were trained
    # The residual stream is float32 whatever the compute dtype: rounding it in every layer would more than double the
    # error of bfloat16 log-probabilities.
    x = constrain(x.astype(jnp.float32), ("rows", None, None))
    tables = rope_tables(arch, layout.positions, dtype)

    def block(
        carry: tuple[jax.Array, KeyValueCache | None], layer: Layer
    ) -> tuple[tuple[jax.Array, KeyValueCache | None], None]:
        x, cache = carry
        weights, adapters = jax.tree.map(functools.partial(_rounded, dtype=dtype), (layer.weights, layer.adapters))
        layer = layer._replace(weights=weights, adapters=adapters)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return rms_norm(x, weights[name]["weight"], arch)

        branch, cache = _attention(model, layer, norm("attn_norm", x), layout, tables, cache)
        x = constrain(x + (norm("post_attn_norm", branch) if arch.gemma_norms else branch), ("rows", None, None))
        branch = _mlp(model, layer, norm("mlp_norm", x))
        x = constrain(x + (norm("post_mlp_norm", branch) if arch.gemma_norms else branch), ("rows", None, None))
        return (x, cache), None

    kinds = jnp.asarray(arch.layer_kinds, jnp.int32)
    layers = Layer(params["blocks"], adapters, kinds, jnp.arange(arch.layers, dtype=jnp.int32))
    (x, cache), _ = jax.lax.scan(_rematerialised(block, model.remat), (x, cache), layers)
    if cache is not None:
        cache = dataclasses.replace(cache, filled=cache.filled + tokens.shape[1])
    return rms_norm(x, params["norm"]["weight"].astype(dtype), arch), cache


def _rematerialised(block: Callable[..., _Result], remat: str) -> Callable[..., _Result]:
    """Returns the block with its checkpoint policy (Chen et al. 2016, arXiv 1604.06174)."""
    if remat == "none":
        return block
    policies = jax.checkpoint_policies
    if remat == "full":
        return jax.checkpoint(block, prevent_cse=False)
    if remat == "dots":
        return jax.checkpoint(block, prevent_cse=False, policy=policies.dots_with_no_batch_dims_saveable)
    if remat == "offload":
        where = platform()
        if where not in ("tpu", "gpu"):
            raise UserError(f"model.remat: offload needs an accelerator that reaches the host's memory, found {where}")
        policy = policies.offload_dot_with_no_batch_dims("device", "pinned_host")
        return jax.checkpoint(block, prevent_cse=False, policy=policy)
    raise UserError(f"model.remat: {remat!r} is not one of {', '.join(REMAT)}")


def _rounded(weight: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rounds a layer's weight to the compute dtype within the loop over layers.

    Without the barrier XLA would round the whole stack before the loop, and keep that copy throughout.
    """
    return weight if weight.dtype == dtype else jax.lax.optimization_barrier(weight).astype(dtype)


def _linear(model: Decoder, layer: Layer, part: str, name: str, x: jax.Array, dims: int = 1) -> jax.Array:
    """Applies one linear map of a layer, with its adapter if there is one: `part` is attn or mlp."""
    adapter = None if layer.adapters is None else layer.adapters.get(part, {}).get(name)
    scale = 1.0 if model.lora_scale is None else model.lora_scale
    return linear(x, layer.weights[part][name], adapter, scale, dims)


def _attention(
    model: Decoder,
    layer: Layer,
    x: Float[Array, "B T d"],
    layout: RowLayout,
    tables: list[RopeTable],
    cache: KeyValueCache | None,
) -> tuple[Float[Array, "B T d"], KeyValueCache | None]:
    """The attention branch of one layer, from normed x; with a cache, adds this layer's keys and values to it."""
    arch = model.arch
    q, k, v = (_linear(model, layer, "attn", name, x) for name in "qkv")
    q = constrain(q, ("rows", None, "heads", None))
    k = constrain(k, ("rows", None, "kv_heads", None))
    v = constrain(v, ("rows", None, "kv_heads", None))
    if arch.qk_norm:
        q = rms_norm(q, layer.weights["attn"]["q_norm"]["weight"], arch)
        k = rms_norm(k, layer.weights["attn"]["k_norm"]["weight"], arch)

    def attend(kind: LayerKind, q: jax.Array, k: jax.Array, v: jax.Array, **keys: jax.Array) -> jax.Array:
        return attention_lib.attend(
            q,
            k,
            v,
            **layout._asdict(),
            window=kind.window,
            soft_cap=arch.attn_soft_cap,
            scale=arch.attn_scale,
            implementation=model.attention,
            **keys,
        )

    def by_kind(function: Callable[..., _Result], *operands: jax.Array) -> _Result:
        """Calls function(kind, table, *operands) for this layer's kind."""
        branches = [functools.partial(function, kind, table) for kind, table in zip(arch.kinds, tables)]
        return branches[0](*operands) if len(branches) == 1 else jax.lax.switch(layer.kind, branches, *operands)

    if cache is None:
        out = by_kind(lambda kind, table, q, k, v: attend(kind, rotate(q, table), rotate(k, table), v), q, k, v)
    else:
        q, k = by_kind(lambda _, table, q, k: (rotate(q, table), rotate(k, table)), q, k)
        start = (layer.number, 0, cache.filled, 0, 0)
        cache = dataclasses.replace(
            cache,
            keys=jax.lax.dynamic_update_slice(cache.keys, k[None], start),
            values=jax.lax.dynamic_update_slice(cache.values, v[None], start),
        )
        keys = {"key_positions": cache.positions, "key_segment_ids": cache.segment_ids, "offset": cache.filled}
        out = by_kind(
            lambda kind, _, q, k, v: attend(kind, q, k, v, **keys),
            q,
            jax.lax.dynamic_index_in_dim(cache.keys, layer.number, keepdims=False),
            jax.lax.dynamic_index_in_dim(cache.values, layer.number, keepdims=False),
        )
    return _linear(model, layer, "attn", "o", out, dims=2), cache


def _mlp(model: Decoder, layer: Layer, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """The gated MLP branch of one layer (Shazeer 2020, arXiv 2002.05202), from normed x."""
    gate = _linear(model, layer, "mlp", "gate", x)
    up = _linear(model, layer, "mlp", "up", x)

    # The backward pass needs gate and up alone; without the checkpoint JAX would keep what lies between them too.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
        return _ACTIVATIONS[model.arch.activation](gate) * up

    inner = constrain(gated(gate, up), ("rows", None, "mlp"))
    return _linear(model, layer, "mlp", "down", inner)


def head_weight(arch: Arch, params: Params) -> Float[Array, "V d"]:
    """Returns the output head: the (unscaled) embedding if they are tied."""
    return params["embed" if arch.tied else "head"]["weight"]


def logits_of(arch: Arch, params: Params, hidden: Float[Array, "B T d"]) -> Float[Array, "B T V"]:
    """Returns logits in float32, after the final soft cap; the product is in the compute dtype, summed in float32."""
    head = head_weight(arch, params).astype(hidden.dtype)
    logits = jnp.einsum(
        "btd,vd->btv", hidden, head, precision=precision(hidden.dtype), preferred_element_type=jnp.float32
    )
    if arch.final_soft_cap is not None:
        logits = arch.final_soft_cap * jnp.tanh(logits / arch.final_soft_cap)
    return logits
