"""The layers that the decoder is made of: linear maps, the RMS norm, rotary embeddings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from care_jax.hardware import platform, precision
from care_jax.models.arch import Arch, Params, Rope

RopeTable = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]  # cosines and sines of the angles


def linear(x: jax.Array, weights: Params, adapter: Params | None, lora_scale: float, dims: int = 1) -> jax.Array:
    """Returns x W^T + b, plus lora_scale * (x A^T) B^T if there is an adapter (Hu et al. 2021).

    x [B, T, *in], W [*out, *in], b [*out], A [r, *in], B [*out, r]; dims: the number of dimensions of *in.
    """
    out = _contract(x, weights["weight"], dims)
    if "bias" in weights:
        out = out + weights["bias"][(None,) * (out.ndim - weights["bias"].ndim)]
    if adapter is not None:
        out = out + lora_scale * _contract(_contract(x, adapter["a"], dims), adapter["b"], 1)
    return out


def _contract(x: jax.Array, weight: jax.Array, dims: int) -> jax.Array:
    """x [B, T, *in] with weight [*out, *in], summed over the last `dims` dimensions of both -> [B, T, *out].

    As one product of matrices: with heads and their size as two dimensions, the compiler would transpose the weight.
    """
    out = weight.shape[: weight.ndim - dims]
    rows = x.shape[: x.ndim - dims]
    flat_x = x.reshape(*rows, math.prod(x.shape[x.ndim - dims :]))
    return _product(flat_x, weight.reshape(math.prod(out), flat_x.shape[-1])).reshape(*rows, *out)


@jax.custom_vjp
def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., i] with weight [o, i] -> [..., o]; its gradient is written by hand for speed."""
    return _multiply(x, weight)


def _multiply(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision(x.dtype))


def _product_forward(
    x: CustomVJPPrimal, weight: CustomVJPPrimal
) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array]]:
    # Calls `_multiply`, as a checkpoint policy would not see the matrix product inside `_product`.
    # A frozen weight gets no gradient, so its x is not kept.
    return _multiply(x.value, weight.value), (x.value if weight.perturbed else None, weight.value)


def _product_backward(
    saved: tuple[jax.Array | None, jax.Array], gradient: jax.Array | SymbolicZero
) -> tuple[jax.Array | None, jax.Array | None]:
    x, weight = saved
    if isinstance(gradient, SymbolicZero):
        return None, None
    to_x = jnp.einsum("...o,oi->...i", gradient, weight, precision=precision(gradient.dtype))
    if x is None:
        return to_x, None
    flat_x, flat = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    # The sum is over tokens, so one side must be transposed: the narrow one. On a CPU it is also written out: else
    # what is computed just before (the gradient of an activation) is written in strides, which takes longer than the
    # product.
    wide = flat.shape[1] > flat_x.shape[1]
    narrow = (flat_x if wide else flat).T
    if platform() == "cpu":
        narrow = jax.lax.optimization_barrier(narrow)
    to_weight = jnp.einsum("at,tb->ab", narrow, flat if wide else flat_x, precision=precision(x.dtype))
    return to_x, to_weight.T if wide else to_weight


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def rms_norm(x: Float[Array, "*dims d"], weight: Float[Array, " d"], arch: Arch) -> Float[Array, "*dims d"]:
    """RMS norm in float32 (Zhang & Sennrich 2019, arXiv 1910.07467), rounded to the weight's dtype.

    It is rounded before the multiplication by the weight; in Gemma after that by (1 + weight).
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + arch.norm_eps)
    scale = weight[(None,) * (x.ndim - 1)]
    if arch.gemma_norms:
        return (wide * (1.0 + scale.astype(jnp.float32))).astype(weight.dtype)
    return scale * wide.astype(weight.dtype)


def rope_tables(arch: Arch, positions: Int[Array, "B T"], dtype: DTypeLike) -> list[RopeTable]:
    """Returns the table of each kind of layer: angles in float32, cosines and sines rounded to the compute dtype."""
    tables = {}
    for rope in {kind.rope: None for kind in arch.kinds}:
        angles = positions[:, :, None].astype(jnp.float32) * rope_frequencies(rope, arch.head_dim)[None, None]
        tables[rope] = (jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype))
    return [tables[kind.rope] for kind in arch.kinds]


def rope_frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " half"]:
    """Rotary frequencies in radians per position, float32, rescaled as `rope` says (llama3: arXiv 2407.21783)."""
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


def rotate(x: Float[Array, "B T H D"], table: RopeTable) -> Float[Array, "B T H D"]:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864): pairs the first half with the second, not neighbours."""
    cos, sin = table[0][:, :, None], table[1][:, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
