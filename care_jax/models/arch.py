"""The architecture of a decoder: its sizes and options, and one declaration for each weight.

`declarations(arch)` is a tree like that of the parameters, with a `Weight` at every leaf. Initialisation, sharding,
import, export and the mask of weight decay all read it.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from care_jax import sharding
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject

Params = dict[str, Any]  # a tree of weights: nested dicts whose leaves are arrays (or their declarations)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding: its base, and how frequencies are rescaled (Su et al. 2021; llama3: Dubey et al. 2024)."""

    theta: float = 10_000.0
    scaling: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What differs between the layers of one model. window: number of visible keys, the query's own included."""

    window: int | None = None
    rope: Rope = Rope()


@dataclasses.dataclass(frozen=True)
class Arch:
    """Everything static about a model; hashable, so that it can be a static argument of `jax.jit`."""

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
    layer_kinds: tuple[int, ...]  # an index into `kinds` for each layer
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
    # Not compared: the config.json it was read from, whose keys export writes again, and its local folder (or '').
    config: str = dataclasses.field(default="{}", compare=False, repr=False)
    folder: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(
                f"config.json: num_attention_heads {self.heads} does not divide by num_key_value_heads {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"config.json: head_dim {self.head_dim} is odd; rotary embeddings need an even size")

    @property
    def config_dict(self) -> JsonObject:
        """The config.json it was read from, as a new object."""
        return json.loads(self.config)


@dataclasses.dataclass(frozen=True)
class Weight:
    """The declaration of one weight.

    shape, axes: sizes and logical axes of the array's dimensions; the first axis of the blocks' weights is "layers".
    init: normal, zeros or ones. hf_name: the tensor's name in a checkpoint, with `{i}` for the layer. hf_shape: its
    shape there; the numbers are in the same order, so that import and export only reshape. decay: whether weight decay
    applies.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Literal["normal", "zeros", "ones"]
    hf_name: str
    hf_shape: tuple[int, ...]
    decay: bool

    @property
    def stacked(self) -> bool:
        """Whether the array holds this weight of all layers."""
        return self.axes[0] == "layers"

    def sharding(self, mesh: Mesh, path: str) -> NamedSharding:
        """Returns its sharding on `mesh`; raises UserError, with `path`, if a size does not divide by its mesh axes."""
        return sharding.sharding(mesh, self.axes, self.shape, path)


# The name of each norm of a block in the tree -> in checkpoints. In Gemma, "post_attention_layernorm" is at the end of
# the attention branch; elsewhere it is at the start of the MLP's.
_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attn_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def declarations(arch: Arch) -> Params:
    """Returns the tree of `Weight`: {"embed", "blocks": {"attn", "mlp", norms}, "norm"[, "head"]}."""
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
        # Files hold matrices [out, in] and vectors: there, heads and their size are one dimension.
        file_shape = [size for size, axis in zip(inner, inner_axes) if axis not in ("heads", "kv_heads", "head_dim")]
        joined = [size for size, axis in zip(inner, inner_axes) if axis in ("heads", "kv_heads", "head_dim")]
        if joined:
            file_shape.insert(0 if inner_axes[0] != "embed" else len(file_shape), math.prod(joined))
        return Weight(shape, axes, init, name, tuple(file_shape), decay=init == "normal")

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


def is_weight(x: object) -> bool:
    return isinstance(x, Weight)


def map_weights(function: Callable[[str, Weight], object], tree: Params) -> Params:
    """Returns the tree of `function(path, weight)`; paths are dotted, as in blocks.attn.q.weight."""

    def at_leaf(path: tuple[jax.tree_util.DictKey, ...], weight: Weight) -> object:
        return function(".".join(str(key.key) for key in path), weight)

    return jax.tree_util.tree_map_with_path(at_leaf, tree, is_leaf=is_weight)


def initial_tree(arch: Arch, key: jax.Array, dtype: DTypeLike, tree: Params) -> Params:
    """Returns fresh arrays for a tree of declarations: normal(0, init_std), zeros or ones; the same on every mesh."""

    def initial(number: int, weight: Weight) -> jax.Array:
        if weight.init == "normal":
            normal = jax.random.normal(jax.random.fold_in(key, number), weight.shape, jnp.float32)
            return (arch.init_std * normal).astype(dtype)
        return jnp.full(weight.shape, 0 if weight.init == "zeros" else 1, dtype)

    leaves, structure = jax.tree.flatten(tree, is_leaf=is_weight)
    return jax.tree.unflatten(structure, [initial(number, leaf) for number, leaf in enumerate(leaves)])


def param_shardings(arch: Arch, mesh: Mesh) -> Params:
    """Returns the tree of NamedSharding; raises UserError if a size does not divide by its mesh axes."""
    return map_weights(lambda path, weight: weight.sharding(mesh, path), declarations(arch))


def decay_mask(arch: Arch) -> Params:
    """Returns the tree of bool for weight decay: False for norms and biases."""
    return map_weights(lambda _, weight: weight.decay, declarations(arch))


def abstract_params(arch: Arch, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None) -> Params:
    """Returns the tree of ShapeDtypeStruct, to restore a checkpoint or to compile; with a mesh, it has shardings."""

    def abstract(path: str, weight: Weight) -> jax.ShapeDtypeStruct:
        placement = None if mesh is None else weight.sharding(mesh, path)
        return jax.ShapeDtypeStruct(weight.shape, dtype, sharding=placement)

    return map_weights(abstract, declarations(arch))


def num_params(arch: Arch) -> int:
    """Returns the number of parameters; a tied head counts once."""
    return sum(math.prod(weight.shape) for weight in jax.tree.leaves(declarations(arch), is_leaf=is_weight))
