"""What the families share in reading and writing config.json.

Files may leave out what is the default of transformers' class, and transformers 4 and 5 spell rotary settings
differently.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from care_jax.errors import UserError
from care_jax.models.arch import Arch, LayerKind, Rope
from care_jax.textfiles import JsonObject

ConfigJson: TypeAlias = Mapping[str, Any]  # a config.json, or a part of one: its values are checked where they are used

_ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}
# The kinds of rotary embedding, with the keys of config.json (and fields of Rope) that rescale the frequencies.
_ROPE_FACTORS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def activation(name: str) -> str:
    """Returns this library's name of a config.json activation; raises UserError for an unsupported one."""
    if name not in _ACTIVATION_NAMES:
        raise UserError(f"config.json: activation {name!r} is not supported; expected {', '.join(_ACTIVATION_NAMES)}")
    return _ACTIVATION_NAMES[name]


def rope(theta: float, settings: ConfigJson | None, max_positions: int) -> Rope:
    """Returns the Rope of one dict of settings, whose kind is `rope_type` (before: `type`).

    A rope_theta in `settings` is used in place of `theta`.
    """
    settings = settings or {}
    kind = settings.get("rope_type", settings.get("type")) or "default"
    theta = settings.get("rope_theta") or theta
    if settings.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        raise UserError("config.json: partial_rotary_factor other than 1 is not supported")
    if kind not in _ROPE_FACTORS:
        raise UserError(f"config.json: rope_type {kind!r} is not supported; expected default, linear or llama3")
    missing = [key for key in _ROPE_FACTORS[kind] if key not in settings]
    if missing:
        raise UserError(f"config.json: {kind} rope scaling lacks {', '.join(missing)}")
    fields: JsonObject = {"theta": float(theta), "scaling": kind}
    fields |= {key: float(settings[key]) for key in _ROPE_FACTORS[kind]}
    if kind == "llama3":
        fields["original_length"] = int(settings.get("original_max_position_embeddings") or max_positions)
    return Rope(**fields)


def single_rope(config: ConfigJson) -> Rope:
    """Returns the Rope that all layers share, from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    settings = config.get("rope_scaling") or config.get("rope_parameters")
    return rope(config.get("rope_theta") or 10_000.0, settings, config["max_position_embeddings"])


def rope_settings(rope: Rope) -> JsonObject | None:
    """Returns the `rope_scaling` of a config.json, or None if frequencies are not rescaled."""
    if rope.scaling == "default":
        return None
    settings: JsonObject = {"rope_type": rope.scaling}
    settings |= {key: getattr(rope, key) for key in _ROPE_FACTORS[rope.scaling]}
    return settings | ({"original_max_position_embeddings": rope.original_length} if rope.scaling == "llama3" else {})


def rope_parameters(rope: Rope) -> JsonObject:
    """Returns the `rope_parameters` of a config.json, as transformers 5 spells them."""
    return {**(rope_settings(rope) or {"rope_type": "default"}), "rope_theta": rope.theta}


def rope_keys(arch: Arch) -> JsonObject:
    """Returns the rotary settings of a model whose layers share them, in the spelling of transformers 5 and of 4."""
    rope = arch.kinds[arch.layer_kinds[0]].rope
    return {"rope_parameters": rope_parameters(rope), "rope_theta": rope.theta, "rope_scaling": rope_settings(rope)}


def local_layers(config: ConfigJson, default: list[bool]) -> list[bool]:
    """Returns whether each layer is local (has a sliding window): from `layer_types` if present, else `default`."""
    names = config.get("layer_types")
    if names is None:
        return default
    layers = config["num_hidden_layers"]
    unknown = sorted(set(names) - {"full_attention", "sliding_attention"})
    if unknown or len(names) != layers:
        raise UserError(
            f"config.json: layer_types needs {layers} entries, each full_attention or sliding_attention; "
            f"found {len(names)}" + (f", with {', '.join(unknown)}" if unknown else "")
        )
    return [name == "sliding_attention" for name in names]


def read(
    config: ConfigJson,
    defaults: ConfigJson,
    local: list[bool] | None = None,
    kinds: tuple[LayerKind, LayerKind] | None = None,
    window: int | None = None,
    **switches: Any,
) -> Arch:
    """Returns the Arch of a config.json; keys that it leaves out are taken from `defaults`.

    local: whether each layer is local (default: none is). kinds: the global and the local kind of layer; by default
    both have the same rotary settings, and local layers the `window`. switches: further fields of Arch.
    """
    merged = {**defaults, **config}
    heads = merged["num_attention_heads"]
    hidden = merged["hidden_size"]
    head_dim = merged.get("head_dim") or hidden // heads
    local = [False] * merged["num_hidden_layers"] if local is None else local
    if kinds is None:
        kinds = (LayerKind(None, single_rope(merged)), LayerKind(window, single_rope(merged)))
    kind_per_layer = [kinds[int(is_local)] for is_local in local]
    used = tuple(kind for i, kind in enumerate(kinds) if kind in kind_per_layer and kind not in kinds[:i])
    fields: JsonObject = {
        "family": merged["model_type"],
        "vocab_size": merged["vocab_size"],
        "hidden": hidden,
        "mlp": merged["intermediate_size"],
        "layers": merged["num_hidden_layers"],
        "heads": heads,
        "kv_heads": merged.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "norm_eps": merged["rms_norm_eps"],
        "activation": activation(merged.get("hidden_activation") or merged["hidden_act"]),
        "kinds": used,
        "layer_kinds": tuple(used.index(kind) for kind in kind_per_layer),
        "tied": bool(merged["tie_word_embeddings"]),
        "attn_scale": head_dim**-0.5,
        "init_std": merged.get("initializer_range", 0.02),
        "config": json.dumps(dict(config)),
    }
    return Arch(**{**fields, **switches})
