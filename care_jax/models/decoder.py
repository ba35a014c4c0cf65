"""The decoder: pure functions of the parameter tree, and the Flax module around them.

One block serves every family; what differs is static in `Arch`. Layers are stacked on a leading axis and scanned, so
compile time does not grow with depth.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from care_jax.errors import UserError
from care_jax.hardware import platform, precision
from care_jax.models import arch as arch_lib
from care_jax.models import attention as attention_lib
from care_jax.models.arch import Arch, LayerKind, Params, Rope
from care_jax.sharding import constrain

REMAT = ("none", "dots", "full", "offload")
_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@flax.struct.dataclass
class KeyValueCache:
    """Keys and values of the tokens so far, for decoding; S places a row, filled from 0, the others in segment 0."""

    keys: Float[Array, "L B S K D"]
    values: Float[Array, "L B S K D"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    filled: Int[Array, ""]


def empty_cache(arch: Arch, batch: int, length: int, dtype: Any) -> KeyValueCache:
    """A cache of `length` places for `batch` rows."""
    shape = (arch.layers, batch, length, arch.kv_heads, arch.head_dim)
    places = jnp.zeros((batch, length), jnp.int32)
    return KeyValueCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), places, places, jnp.zeros((), jnp.int32))


class Places(NamedTuple):
    """Where each token of the rows stands."""

    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    prompt_segment_ids: Int[Array, "B T"] | None


def frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " half"]:
    """Rotary frequencies in radians a position, float32, rescaled as `rope` says (llama3: arXiv 2407.21783)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = np.float32(1) / np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    if rope.scaling == "linear":
        return inverse / np.float32(rope.factor)
    if rope.scaling == "llama3":
        wavelength = 2 * np.pi / inverse
        low, high = rope.original_length / rope.low_freq_factor, rope.original_length / rope.high_freq_factor
        smooth = (rope.original_length / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        between = (1 - smooth) * inverse / rope.factor + smooth * inverse
        scaled = np.where(wavelength > low, inverse / rope.factor, np.where(wavelength < high, inverse, between))
        return scaled.astype(np.float32)
    return inverse


def rope_tables(arch: Arch, positions: Int[Array, "B T"], dtype: Any) -> list[tuple[jax.Array, jax.Array]]:
    """(cos, sin) [B, T, D/2] for each kind of layer: angles in float32, the tables rounded to the compute dtype."""
    tables = {}
    for rope in {kind.rope: None for kind in arch.kinds}:
        angles = positions[:, :, None].astype(jnp.float32) * frequencies(rope, arch.head_dim)[None, None]
        tables[rope] = (jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype))
    return [tables[kind.rope] for kind in arch.kinds]


def rotate(x: Float[Array, "B T H D"], table: tuple[jax.Array, jax.Array]) -> Float[Array, "B T H D"]:
    """Rotary embedding, first half against second half (not interleaved)."""
    cos, sin = table[0][:, :, None], table[1][:, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rms_norm(x: Float[Array, "*dims d"], weight: Float[Array, " d"], arch: Arch) -> Float[Array, "*dims d"]:
    """RMS norm in float32, rounded to the weight's dtype: before the weight multiplies, in Gemma after (1 + w) did."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + arch.norm_eps)
    scale = weight[(None,) * (x.ndim - 1)]
    if arch.gemma_norms:
        return (wide * (1.0 + scale.astype(jnp.float32))).astype(weight.dtype)
    return scale * wide.astype(weight.dtype)


def _contract(x: jax.Array, weight: jax.Array, dims: int) -> jax.Array:
    """x [B, T, *in] with weight [*out, *in] over the last `dims` dimensions of both -> [B, T, *out].

    As one matrix product: with heads and their size apart the compiler would transpose the weight first.
    """
    out = weight.shape[: weight.ndim - dims]
    rows = x.shape[: x.ndim - dims]
    flat_x = x.reshape(*rows, math.prod(x.shape[x.ndim - dims :]))
    return _product(flat_x, weight.reshape(math.prod(out), flat_x.shape[-1])).reshape(*rows, *out)


def _multiply(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision(x.dtype))


@jax.custom_vjp
def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., i] with weight [o, i] -> [..., o]; the gradient's own way is why this is not left to JAX."""
    return _multiply(x, weight)


def _product_forward(x: Any, weight: Any) -> tuple[jax.Array, Any]:
    # Not `_product`: within its own rule a checkpoint policy would not see the matrix product that it may keep.
    # A frozen weight's gradient is not taken: its x need not be kept.
    return _multiply(x.value, weight.value), (x.value if weight.perturbed else None, weight.value)


def _product_backward(saved: Any, gradient: Any) -> tuple[Any, Any]:
    x, weight = saved
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        return None, None
    to_x = jnp.einsum("...o,oi->...i", gradient, weight, precision=precision(gradient.dtype))
    if x is None:
        return to_x, None
    flat_x, flat = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    # Tokens are summed over, so that one side is transposed: the narrow one, and on a CPU really so. What is computed
    # just before (an activation's gradient) is else written in strides, which takes longer than the product.
    wide = flat.shape[1] > flat_x.shape[1]
    narrow = (flat_x if wide else flat).T
    if platform() == "cpu":
        narrow = jax.lax.optimization_barrier(narrow)
    to_weight = jnp.einsum("at,tb->ab", narrow, flat if wide else flat_x, precision=precision(x.dtype))
    return to_x, to_weight.T if wide else to_weight


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def linear(x: jax.Array, weight: Params, lora: Params | None, lora_scale: float, dims: int = 1) -> jax.Array:
    """x W^T + b, and the adapter's lora_scale * (x A^T) B^T where there is one (Hu et al. 2021)."""
    out = _contract(x, weight["weight"], dims)
    if "bias" in weight:
        out = out + weight["bias"][(None,) * (out.ndim - weight["bias"].ndim)]
    if lora is not None:
        out = out + lora_scale * _contract(_contract(x, lora["a"], dims), lora["b"], 1)
    return out


def _part(lora: Params | None, *names: str) -> Params | None:
    for name in names:
        lora = None if lora is None else lora.get(name)
    return lora


def _attention(
    arch: Arch,
    x: jax.Array,
    weights: Params,
    lora: Params | None,
    lora_scale: float,
    kind: jax.Array,
    places: Places,
    tables: list[tuple[jax.Array, jax.Array]],
    cache: KeyValueCache | None,
    layer: jax.Array,
    implementation: str,
) -> tuple[jax.Array, KeyValueCache | None]:
    """The attention branch of one layer, from normed x [B, T, d]; with a cache, writes this layer's keys into it."""
    q = linear(x, weights["q"], _part(lora, "q"), lora_scale)
    k = linear(x, weights["k"], _part(lora, "k"), lora_scale)
    v = linear(x, weights["v"], _part(lora, "v"), lora_scale)
    q = constrain(q, ("rows", None, "heads", None))
    k = constrain(k, ("rows", None, "kv_heads", None))
    v = constrain(v, ("rows", None, "kv_heads", None))
    if arch.qk_norm:
        q = rms_norm(q, weights["q_norm"]["weight"], arch)
        k = rms_norm(k, weights["k_norm"]["weight"], arch)

    def by_kind(function: Any, *operands: Any) -> Any:
        branches = [
            lambda *args, this=this, table=table: function(this, table, *args)
            for this, table in zip(arch.kinds, tables)
        ]
        return branches[0](*operands) if len(branches) == 1 else jax.lax.switch(kind, branches, *operands)

    def attend(this: LayerKind, q: jax.Array, k: jax.Array, v: jax.Array, **keys: Any) -> jax.Array:
        return attention_lib.attend(
            q,
            k,
            v,
            **places._asdict(),
            window=this.window,
            soft_cap=arch.attn_soft_cap,
            scale=arch.attn_scale,
            implementation=implementation,
            **keys,
        )

    if cache is None:
        out = by_kind(lambda this, table, q, k, v: attend(this, rotate(q, table), rotate(k, table), v), q, k, v)
    else:
        q, k = by_kind(lambda _, table, q, k: (rotate(q, table), rotate(k, table)), q, k)
        start = (layer, 0, cache.filled, 0, 0)
        cache = dataclasses.replace(
            cache,
            keys=jax.lax.dynamic_update_slice(cache.keys, k[None], start),
            values=jax.lax.dynamic_update_slice(cache.values, v[None], start),
        )
        keys = {"key_positions": cache.positions, "key_segment_ids": cache.segment_ids, "offset": cache.filled}
        out = by_kind(
            lambda this, _, q, k, v: attend(this, q, k, v, **keys),
            q,
            jax.lax.dynamic_index_in_dim(cache.keys, layer, keepdims=False),
            jax.lax.dynamic_index_in_dim(cache.values, layer, keepdims=False),
        )
    return linear(out, weights["o"], _part(lora, "o"), lora_scale, dims=2), cache


def _rounded(weight: jax.Array, dtype: Any) -> jax.Array:
    """A layer's weight in the compute dtype, rounded within the loop over layers: XLA would round the whole stack
    before it, and hold that copy throughout.
    """
    return weight if weight.dtype == dtype else jax.lax.optimization_barrier(weight).astype(dtype)


def _mlp(arch: Arch, x: jax.Array, weights: Params, lora: Params | None, lora_scale: float) -> jax.Array:
    gate = linear(x, weights["gate"], _part(lora, "gate"), lora_scale)
    up = linear(x, weights["up"], _part(lora, "up"), lora_scale)

    # The backward pass needs nothing but gate and up; left to itself JAX keeps what lies between them too.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
        return _ACTIVATIONS[arch.activation](gate) * up

    inner = constrain(gated(gate, up), ("rows", None, "mlp"))
    return linear(inner, weights["down"], _part(lora, "down"), lora_scale)


def forward(
    arch: Arch,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    prompt_segment_ids: Int[Array, "B T"] | None = None,
    *,
    lora: Params | None = None,
    lora_scale: float = 1.0,
    cache: KeyValueCache | None = None,
    dtype: Any = jnp.float32,
    remat: str = "none",
    attention: str = "auto",
) -> tuple[Float[Array, "B T d"], KeyValueCache | None]:
    """The final-normed hidden states of the tokens, in `dtype`, and the cache with them in it.

    positions default to 0..T-1, segment_ids to 1; prompt_segment_ids None: no prompt is shared (`attention.visible`).
    Weights are rounded to `dtype` where they are used.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    places = Places(positions, segment_ids, prompt_segment_ids)
    if cache is not None:
        cache = dataclasses.replace(
            cache,
            positions=jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.filled)),
            segment_ids=jax.lax.dynamic_update_slice(cache.segment_ids, segment_ids, (0, cache.filled)),
        )

    x = params["embed"]["weight"][tokens].astype(dtype)  # looked up first: frequent tokens' gradients sum unrounded
    if arch.embed_scale is not None:
        x = x * jnp.asarray(arch.embed_scale, dtype)  # rounded to dtype first, as the checkpoints were trained
    # The residual stream is float32 whatever the compute dtype: rounding it at every layer would more than double the
    # error of bfloat16 log-probabilities.
    x = constrain(x.astype(jnp.float32), ("rows", None, None))

    tables = rope_tables(arch, positions, dtype)

    def block(
        carry: tuple[jax.Array, KeyValueCache | None], layer: Any
    ) -> tuple[tuple[jax.Array, KeyValueCache | None], None]:
        x, cache = carry
        weights, adapters, kind, index = layer
        weights, adapters = jax.tree.map(functools.partial(_rounded, dtype=dtype), (weights, adapters))

        def norm(name: str, x: jax.Array) -> jax.Array:
            return rms_norm(x, weights[name]["weight"], arch)

        branch, cache = _attention(
            arch,
            norm("attn_norm", x),
            weights["attn"],
            _part(adapters, "attn"),
            lora_scale,
            kind,
            places,
            tables,
            cache,
            index,
            attention,
        )
        x = constrain(x + (norm("post_attn_norm", branch) if arch.gemma_norms else branch), ("rows", None, None))
        branch = _mlp(arch, norm("mlp_norm", x), weights["mlp"], _part(adapters, "mlp"), lora_scale)
        x = constrain(x + (norm("post_mlp_norm", branch) if arch.gemma_norms else branch), ("rows", None, None))
        return (x, cache), None

    if remat == "full":
        block = jax.checkpoint(block, prevent_cse=False)
    elif remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        block = jax.checkpoint(block, prevent_cse=False, policy=policy)
    elif remat == "offload":
        where = platform()
        if where not in ("tpu", "gpu"):
            raise UserError(f"model.remat: offload needs an accelerator that reaches the host's memory, found {where}")
        policy = jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host")
        block = jax.checkpoint(block, prevent_cse=False, policy=policy)
    elif remat != "none":
        raise UserError(f"model.remat: {remat!r} is not one of {', '.join(REMAT)}")
    blocks_lora = None if lora is None else lora["blocks"]
    kinds = jnp.asarray(arch.layer_kinds, jnp.int32)
    layers = (params["blocks"], blocks_lora, kinds, jnp.arange(arch.layers, dtype=jnp.int32))
    (x, cache), _ = jax.lax.scan(block, (x, cache), layers)
    if cache is not None:
        cache = dataclasses.replace(cache, filled=cache.filled + tokens.shape[1])
    return rms_norm(x, params["norm"]["weight"].astype(dtype), arch), cache


def head_weight(arch: Arch, params: Params) -> Float[Array, "V d"]:
    """The output head: the (unscaled) embedding where tied."""
    return params["embed" if arch.tied else "head"]["weight"]


def logits_of(arch: Arch, params: Params, hidden: Float[Array, "B T d"]) -> Float[Array, "B T V"]:
    """Logits in float32, the final soft cap applied; the product takes the compute dtype, accumulated in float32."""
    head = head_weight(arch, params).astype(hidden.dtype)
    logits = jnp.einsum(
        "btd,vd->btv", hidden, head, precision=precision(hidden.dtype), preferred_element_type=jnp.float32
    )
    if arch.final_soft_cap is not None:
        logits = arch.final_soft_cap * jnp.tanh(logits / arch.final_soft_cap)
    return logits


class Decoder(nn.Module):
    """The Flax module: `model.apply({"params": p[, "lora": l]}, tokens, ...)`.

    arch: the model. dtype: of the computation. remat: none, dots (keep matrix products), full (keep each layer's
    input) or offload (keep matrix products in the host's memory). attention: see `attention.choose`. lora_scale:
    alpha / r of the adapters, None where it has none.
    shared_prompts: False where every token's prompt is in its own segment: prompt_segment_ids are then not read, and
    attention's kernels have less to do.
    """

    arch: Arch
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    lora_scale: float | None = None
    shared_prompts: bool = True

    def _params(self) -> Params:
        params = {}
        for name, tree in arch_lib.declarations(self.arch).items():
            params[name] = self.param(
                name, lambda key, tree=tree: arch_lib.initial_tree(self.arch, key, jnp.float32, tree)
            )
        return params

    def _lora(self) -> Params | None:
        if not self.has_variable("lora", "blocks"):
            return None
        if self.lora_scale is None:
            raise ValueError("the 'lora' collection needs a model with lora_scale set (care_jax.models.lora.attach)")
        return {"blocks": self.get_variable("lora", "blocks")}

    def _forward(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array | None,
        segment_ids: jax.Array | None,
        prompt_segment_ids: jax.Array | None,
        cache: KeyValueCache | None = None,
    ) -> tuple[jax.Array, KeyValueCache | None]:
        return forward(
            self.arch,
            params,
            tokens,
            positions,
            segment_ids,
            prompt_segment_ids if self.shared_prompts else None,
            lora=self._lora(),
            lora_scale=1.0 if self.lora_scale is None else self.lora_scale,
            cache=cache,
            dtype=self.dtype,
            remat=self.remat,
            attention=self.attention,
        )

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        prompt_segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits in float32, the final soft cap applied."""
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
        """The hidden states after the final norm, in the compute dtype."""
        return self._forward(self._params(), tokens, positions, segment_ids, prompt_segment_ids)[0]

    @nn.compact
    def decode(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        cache: KeyValueCache,
    ) -> tuple[Float[Array, "B T d"], KeyValueCache]:
        """The hidden states of the next T tokens of each row, and the cache with them in it."""
        hidden, cache_now = self._forward(self._params(), tokens, positions, segment_ids, None, cache=cache)
        assert cache_now is not None
        return hidden, cache_now
