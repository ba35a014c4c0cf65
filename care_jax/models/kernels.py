"""Attention kernels of accelerators behind one interface: splash on TPU, Pallas on GPU. No other module imports them.

`refusal` returns why a kernel cannot serve; nothing here falls back to another program. Splash compares one segment id
per token and masks by slot in the row. If a prompt is shared by several responses, it makes two passes over the row:
one over each query's segment and one over its prompt. They are joined by their log-sum-exps (the online softmax of Dao
et al. 2022, arXiv 2205.14135). The backward pass of each gets the joined result, so that the sum of both is exact.
"""

import contextlib
import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from care_jax import hardware, sharding

KERNELS = {"splash": "tpu", "pallas": "gpu"}

# Set by tests: runs the kernels' code on the host, in Pallas's interpreter.
INTERPRET = False

_LANES = 128  # rows are padded to a multiple of it
_BLOCKS = (512, 384, 256, 128)
_GPU_BLOCK = 64
_GPU_HEAD_DIM = 128  # above, the blocks of the backward pass do not fit the shared memory of every GPU
# The arguments of splash's backward pass, which is private to jax: other versions may have other arguments.
_BACKWARD = (
    "save_residuals mask_value is_mqa block_sizes residual_checkpoint_name mask_function attn_logits_soft_cap "
    "interpret res do"
)


class AttentionCall(NamedTuple):
    """The properties of one layer's attention on which it depends whether a kernel can serve. length: slots per row."""

    rows: int
    length: int
    window: int | None
    shared_prompts: bool
    dtype: DTypeLike


def refusal(kernel: str, call: AttentionCall) -> str | None:
    """Returns why this kernel cannot serve these rows, and what to set, or None if it can.

    Whether it can serve the model at all is checked by `unfit`.
    """
    other_platform = wrong_platform(kernel)
    if other_platform is not None:
        return other_platform
    rows, length, window, shared_prompts, dtype = call
    parts = math.prod(jax.sharding.get_abstract_mesh().shape.get(axis, 1) for axis in sharding.RULES["rows"] or ())
    if rows % parts:
        return f"{rows} rows do not divide by the {parts} parts of the mesh that hold them"
    narrow = window is not None and window < length
    if kernel == "splash":
        if narrow and shared_prompts:
            return (
                f"its window counts slots of the row, and with shared prompts a window of {window} in rows of "
                f"{length} counts positions: set batch.share_prompts: false, or batch.row_length to at most {window}"
            )
        arguments = " ".join(inspect.signature(_splash_module()._splash_attention_bwd).parameters)
        if arguments != _BACKWARD:
            return f"jax {jax.__version__} has another backward pass than 0.10 ({arguments})"
        return None
    if narrow:
        return f"it has no sliding window, and the model's is {window} in rows of {length}"
    if shared_prompts:
        return "it compares one segment id per token: set batch.share_prompts: false"
    if dtype not in (jnp.bfloat16, jnp.float16) and not INTERPRET:
        return f"it multiplies in 16 bits: set model.dtype: bfloat16 (found {jnp.dtype(dtype).name})"
    return None


def wrong_platform(kernel: str) -> str | None:
    """Returns why this kernel does not run on this machine (or on that of the mesh in context), or None."""
    here = hardware.platform()
    if here == KERNELS[kernel] or INTERPRET:
        return None
    return f"it runs on a {KERNELS[kernel].upper()}, and the devices are of platform {here!r}"


def unfit(kernel: str, head_dim: int, soft_cap: float | None) -> str | None:
    """Returns why this kernel cannot serve a model, whatever its rows, or None."""
    if kernel != "pallas":
        return None
    if soft_cap is not None:
        return f"it has no soft cap, and the model's attention is capped at {soft_cap:g}"
    if head_dim > _GPU_HEAD_DIM:
        return f"it takes heads of up to {_GPU_HEAD_DIM} numbers, and the model's have {head_dim}"
    return None


def attend(
    kernel: str,
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    segment_ids: Int[Array, "B T"],
    prompt_segment_ids: Int[Array, "B T"] | None,
    *,
    window: int | None,
    soft_cap: float | None,
    scale: float,
) -> Float[Array, "B T H D"]:
    """Attention of packed rows by a kernel that can serve them; each device computes its own rows and heads."""
    length = q.shape[1]
    window = None if window is None or window >= length else window
    pad = -length % (_LANES if kernel == "splash" else _GPU_BLOCK)
    q = q * jnp.asarray(scale, q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (q, k, v))
    ids = [jnp.pad(x, ((0, 0), (0, pad))) for x in (segment_ids, prompt_segment_ids) if x is not None]
    attention = functools.partial(_splash, _Mask(window, soft_cap)) if kernel == "splash" else _pallas
    return _per_device(attention)(q, k, v, *ids)[:, :length]


def _per_device(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns the function that runs a kernel on each device's part: the partitioner cannot split a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind == AxisType.Manual for kind in mesh.axis_types):
        return function
    heads, ids = sharding.spec(("rows", None, "heads", None)), sharding.spec(("rows", None))

    def spread(q: jax.Array, k: jax.Array, v: jax.Array, *segments: jax.Array) -> jax.Array:
        specs = (heads, heads, heads, *(ids for _ in segments))
        return jax.shard_map(function, in_specs=specs, out_specs=heads, check_vma=False)(q, k, v, *segments)

    return spread


# TPU: splash.


class _Mask(NamedTuple):
    """The static part of a call of splash."""

    window: int | None
    soft_cap: float | None


def _splash_module() -> types.ModuleType:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel


def _kernel(mask: _Mask, heads: int, length: int) -> Any:
    """Returns splash for one row; its forward pass returns (out, (log-sum-exp,))."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    head = masks.CausalMask(shape) if mask.window is None else masks.LocalMask(shape, (mask.window - 1, 0), 0)
    block = next(size for size in _BLOCKS if length % size == 0)
    module = _splash_module()
    return module.make_splash_mha_single_device(
        masks.MultiHeadMask([head] * heads),
        block_sizes=module.BlockSizes(*[block] * 8),
        save_residuals=True,
        attn_logits_soft_cap=mask.soft_cap,
        interpret=INTERPRET,
    )


def _passes(segment_ids: jax.Array, prompt_segment_ids: jax.Array | None) -> list[Any]:
    """Returns splash's segment ids for each pass; every query sees its own key in exactly one pass."""
    ids = _splash_module().SegmentIds
    if prompt_segment_ids is None:
        return [ids(segment_ids, segment_ids)]
    # The prompt segment of a prompt's token is its own segment: the second pass serves it, and the first must not.
    first_pass = jnp.where(segment_ids == prompt_segment_ids, -1, segment_ids)
    return [ids(first_pass, segment_ids), ids(prompt_segment_ids, segment_ids)]


def _precision(dtype: DTypeLike) -> contextlib.AbstractContextManager[object]:
    """Keeps products of float32 in float32: accelerators multiply in fewer bits by default."""
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _row(
    mask: _Mask, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, prompt_segment_ids: jax.Array | None
) -> jax.Array:
    """Attention in one row [H, T, D]; q is scaled already."""
    return _row_forward(mask, q, k, v, segment_ids, prompt_segment_ids)[0]


_Residuals = tuple[jax.Array | None, ...]


def _row_forward(
    mask: _Mask, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, prompt_segment_ids: jax.Array | None
) -> tuple[jax.Array, _Residuals]:
    kernel = _kernel(mask, q.shape[0], q.shape[1])
    with _precision(q.dtype):
        passes = [kernel(q, k, v, ids) for ids in _passes(segment_ids, prompt_segment_ids)]
    out, (lse,) = passes[0]
    if len(passes) == 2:
        other, (other_lse,) = passes[1]
        joined = jnp.logaddexp(lse, other_lse)
        share, other_share = (jnp.exp(x - joined)[..., None] for x in (lse, other_lse))
        wide = share * out.astype(jnp.float32) + other_share * other.astype(jnp.float32)
        out, lse = wide.astype(q.dtype), joined
    return out, (q, k, v, segment_ids, prompt_segment_ids, out, lse)


def _row_backward(mask: _Mask, residuals: _Residuals, gradient: jax.Array) -> _Residuals:
    q, k, v, segment_ids, prompt_segment_ids, out, lse = residuals
    assert q is not None
    assert segment_ids is not None
    kernel = _kernel(mask, q.shape[0], q.shape[1])
    options = kernel.kwargs | {"save_residuals": False}
    static = [options[name] for name in _BACKWARD.split()[:-2]]
    gradients = []
    with _precision(q.dtype):
        for ids in _passes(segment_ids, prompt_segment_ids):
            saved = (q, k, v, ids, None, out, lse, kernel.dq_mask_info, kernel.dkv_mask_info)
            gradients.append(_splash_module()._splash_attention_bwd(*static, saved, gradient)[3:6])
    return *(functools.reduce(jnp.add, parts) for parts in zip(*gradients)), None, None


_row.defvjp(_row_forward, _row_backward)


def _splash(
    mask: _Mask,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    prompt_segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Attention in rows [B, T, heads, D]."""
    heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
    prompts = None if prompt_segment_ids is None else 0
    rows = jax.vmap(functools.partial(_row, mask), in_axes=(0, 0, 0, 0, prompts))
    return rows(*heads_first, segment_ids, prompt_segment_ids).swapaxes(1, 2)


# GPU: Pallas's flash attention.


def _pallas(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Attention in rows [B, T, heads, D]; a key head is repeated for each of its query heads."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    blocks = BlockSizes(*[_GPU_BLOCK] * 6)
    return mha(q, k, v, segment_ids, 1.0, True, blocks, interpret=INTERPRET)
