"""What a decoder is: its sizes and switches, and the one declaration of every weight.

`declarations(arch)` has exactly the structure of the parameters, with a `Weight` at every leaf. Initialisation,
sharding, import, export and the weight decay mask all read it.
"""

import dataclasses
import json
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from care_jax import sharding
from care_jax.errors import UserError

Params = dict[str, Any]  # a tree of weights: nested dicts whose leaves are arrays (or their declarations)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding: the base, and how its frequencies are rescaled (Su et al. 2021; llama3: Dubey et al. 2024)."""

    theta: float = 10_000.0
    scaling: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What differs between the layers of one model. `window` counts the visible keys, the query itself included."""

    window: int | None = None
    rope: Rope = Rope()


@dataclasses.dataclass(frozen=True)
class Arch:
    """Everything static about a model; hashable, so that it may be a static argument of `jax.jit`."""

    family: str
    vocab_size: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    activation: str  # silu, gelu_tanh or gelu
    kinds: tuple[LayerKind, ...]
    layer_kinds: tuple[int, ...]  # one index into `kinds` a layer
    tied: bool
    attn_scale: float
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    gemma_norms: bool = False  # (1 + w) in float32, and a second norm on each residual branch
    embed_scale: float | None = None
    attn_soft_cap: float | None = None
    final_soft_cap: float | None = None
    init_std: float = 0.02
    # The config.json it was read from: export writes its keys back. No part of the identity.
    config: str = dataclasses.field(default="{}", compare=False, repr=False)
    # The local folder it was read from, '' where none: export carries its tokenizer over. No part of the identity.
    folder: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(
                f"config.json: num_attention_heads {self.heads} does not divide by num_key_value_heads {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"config.json: head_dim {self.head_dim} is odd; rotary embeddings need an even size")

    @property
    def config_dict(self) -> dict[str, Any]:
        return json.loads(self.config)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight of the tree.

    shape, axes: of the array, with their logical axes; blocks' weights carry a leading "layers".
    init: normal, zeros or ones. hf_name: the tensor's name, `{i}` the layer. hf_shape: the tensor's shape in the file:
    the same numbers in the same order, so that import and export only reshape. decay: does weight decay apply.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Literal["normal", "zeros", "ones"]
    hf_name: str
    hf_shape: tuple[int, ...]
    decay: bool

    @property
    def stacked(self) -> bool:
        return self.axes[0] == "layers"


# This tree's name of each norm of a block -> the checkpoint's. In Gemma "post_attention_layernorm" ends the attention
# branch; elsewhere it begins the MLP's.
_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attn_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def declarations(arch: Arch) -> Params:
    """The tree of `Weight`: {"embed", "blocks": {"attn", "mlp", norms}, "norm"[, "head"]}."""
    sizes = {
        "layers": arch.layers,
        "vocab": arch.vocab_size,
        "embed": arch.hidden,
        "norm": arch.hidden,
        "heads": arch.heads,
        "kv_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "mlp": arch.mlp,
    }
    norm_init: Literal["zeros", "ones"] = "zeros" if arch.gemma_norms else "ones"

    def weight(name: str, axes: tuple[str, ...], init: Literal["normal", "zeros", "ones"]) -> Weight:
        shape = tuple(sizes[axis] for axis in axes)
        inner, inner_axes = (shape[1:], axes[1:]) if axes[0] == "layers" else (shape, axes)
        # Files hold matrices [out, in] and vectors: heads and their size are one dimension there.
        rest = [size for size, axis in zip(inner, inner_axes) if axis not in ("heads", "kv_heads", "head_dim")]
        joined = [size for size, axis in zip(inner, inner_axes) if axis in ("heads", "kv_heads", "head_dim")]
        hf = list(rest)
        if joined:
            size = 1
            for one in joined:
                size *= one
            hf.insert(0 if inner_axes[0] != "embed" else len(rest), size)
        return Weight(shape, axes, init, name, tuple(hf), decay=init == "normal")

    def linear(module: str, out: tuple[str, ...], into: tuple[str, ...], bias: bool) -> Params:
        prefix = f"model.layers.{{i}}.{module}"
        tree: Params = {"weight": weight(f"{prefix}.weight", ("layers", *out, *into), "normal")}
        if bias:
            tree["bias"] = weight(f"{prefix}.bias", ("layers", *out), "zeros")
        return tree

    def norm(name: str, axis: str) -> Params:
        return {"weight": weight(f"model.layers.{{i}}.{name}.weight", ("layers", axis), norm_init)}

    heads, kv_heads = ("heads", "head_dim"), ("kv_heads", "head_dim")
    attention: Params = {
        "q": linear("self_attn.q_proj", heads, ("embed",), arch.qkv_bias),
        "k": linear("self_attn.k_proj", kv_heads, ("embed",), arch.qkv_bias),
        "v": linear("self_attn.v_proj", kv_heads, ("embed",), arch.qkv_bias),
        "o": linear("self_attn.o_proj", ("embed",), heads, arch.o_bias),
    }
    if arch.qk_norm:
        attention |= {"q_norm": norm("self_attn.q_norm", "head_dim"), "k_norm": norm("self_attn.k_norm", "head_dim")}
    blocks: Params = {
        "attn": attention,
        "mlp": {
            "gate": linear("mlp.gate_proj", ("mlp",), ("embed",), arch.mlp_bias),
            "up": linear("mlp.up_proj", ("mlp",), ("embed",), arch.mlp_bias),
            "down": linear("mlp.down_proj", ("embed",), ("mlp",), arch.mlp_bias),
        },
    }
    names = _GEMMA_NORMS if arch.gemma_norms else _NORMS
    blocks |= {ours: norm(theirs, "norm") for ours, theirs in names.items()}
    tree: Params = {
        "embed": {"weight": weight("model.embed_tokens.weight", ("vocab", "embed"), "normal")},
        "blocks": blocks,
        "norm": {"weight": weight("model.norm.weight", ("norm",), norm_init)},
    }
    if not arch.tied:
        tree["head"] = {"weight": weight("lm_head.weight", ("vocab", "embed"), "normal")}
    return tree


def is_weight(x: Any) -> bool:
    return isinstance(x, Weight)


def map_weights(function: Any, tree: Params) -> Params:
    """`function(path, weight)` at every leaf; the path is dotted, as in blocks.attn.q.weight."""

    def at(path: Any, weight: Weight) -> Any:
        return function(".".join(str(key.key) for key in path), weight)

    return jax.tree_util.tree_map_with_path(at, tree, is_leaf=is_weight)


def initial(weight: Weight, key: jax.Array, std: float, dtype: Any) -> jax.Array:
    """A fresh array of this weight: normal(0, std), zeros or ones."""
    if weight.init == "normal":
        return (std * jax.random.normal(key, weight.shape, jnp.float32)).astype(dtype)
    return jnp.full(weight.shape, 0 if weight.init == "zeros" else 1, dtype)


def initial_tree(arch: Arch, key: jax.Array, dtype: Any, tree: Params | None = None) -> Params:
    """Fresh parameters; each weight's key comes from its place in the tree, so that no mesh changes the numbers."""
    leaves, structure = jax.tree.flatten(declarations(arch) if tree is None else tree, is_leaf=is_weight)
    keys = [jax.random.fold_in(key, place) for place in range(len(leaves))]
    return jax.tree.unflatten(structure, [initial(leaf, k, arch.init_std, dtype) for leaf, k in zip(leaves, keys)])


def param_shardings(arch: Arch, mesh: Mesh) -> Params:
    """The tree of NamedSharding; UserError where a size does not divide by its mesh axis."""

    def place(path: str, weight: Weight) -> NamedSharding:
        return sharding.sharding(mesh, weight.axes, weight.shape, path)

    return map_weights(place, declarations(arch))


def decay_mask(arch: Arch) -> Params:
    """The tree of bool for weight decay: False on norms and biases."""
    return map_weights(lambda _, weight: weight.decay, declarations(arch))


def abstract_params(arch: Arch, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Params:
    """The tree of ShapeDtypeStruct, placed where a mesh is given: what restoring a checkpoint or compiling needs."""

    def leaf(path: str, weight: Weight) -> jax.ShapeDtypeStruct:
        placed = None if mesh is None else sharding.sharding(mesh, weight.axes, weight.shape, path)
        return jax.ShapeDtypeStruct(weight.shape, dtype, sharding=placed)

    return map_weights(leaf, declarations(arch))


def num_params(arch: Arch) -> int:
    """How many numbers the tree holds; a tied head counts once."""
    total = 0
    for leaf in jax.tree.leaves(declarations(arch), is_leaf=is_weight):
        size = 1
        for dimension in leaf.shape:
            size *= dimension
        total += size
    return total
