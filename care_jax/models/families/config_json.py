"""Reading config.json: class defaults of sparse files, and both spellings of rotary settings."""

import json
from collections.abc import Mapping
from typing import Any

from care_jax.errors import UserError
from care_jax.models.arch import Arch, LayerKind, Rope

Config = Mapping[str, Any]

_ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}


def activation(name: str) -> str:
    """This library's name of a config.json activation; UserError where there is none."""
    if name not in _ACTIVATION_NAMES:
        raise UserError(f"config.json: activation {name!r} is not supported; expected {', '.join(_ACTIVATION_NAMES)}")
    return _ACTIVATION_NAMES[name]


def rope(theta: float, settings: Mapping[str, Any] | None, max_positions: int) -> Rope:
    """A Rope from one dict of settings (`rope_type` or its old alias `type`); its own rope_theta wins over `theta`."""
    settings = settings or {}
    kind = settings.get("rope_type", settings.get("type")) or "default"
    theta = settings.get("rope_theta") or theta
    if settings.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        raise UserError("config.json: partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return Rope(theta=float(theta))
    if kind == "linear":
        return Rope(theta=float(theta), scaling="linear", factor=float(settings["factor"]))
    if kind == "llama3":
        missing = [key for key in ("factor", "low_freq_factor", "high_freq_factor") if key not in settings]
        if missing:
            raise UserError(f"config.json: llama3 rope scaling lacks {', '.join(missing)}")
        return Rope(
            theta=float(theta),
            scaling="llama3",
            factor=float(settings["factor"]),
            low_freq_factor=float(settings["low_freq_factor"]),
            high_freq_factor=float(settings["high_freq_factor"]),
            original_length=int(settings.get("original_max_position_embeddings") or max_positions),
        )
    raise UserError(f"config.json: rope_type {kind!r} is not supported; expected default, linear or llama3")


def single_rope(config: Config) -> Rope:
    """The one Rope of a model without layer-wise bases, from `rope_parameters` or rope_theta and `rope_scaling`."""
    settings = config.get("rope_scaling") or config.get("rope_parameters")
    return rope(config.get("rope_theta") or 10_000.0, settings, config["max_position_embeddings"])


def layer_types(config: Config, default: list[bool]) -> list[bool]:
    """For each layer, is it local: from `layer_types` where the file has it, else `default`."""
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
    config: Config,
    defaults: Config,
    local: list[bool] | None = None,
    kinds: tuple[LayerKind, LayerKind] | None = None,
    window: int | None = None,
    **switches: Any,
) -> Arch:
    """An Arch from a config.json, keys absent there taken from the family's class defaults.

    local: which layers are local (default none). kinds: the global and the local kind; by default one rotary base, and
    `window` for the local ones. switches: fields of Arch that the family sets.
    """
    merged = {**defaults, **config}
    heads = merged["num_attention_heads"]
    hidden = merged["hidden_size"]
    head_dim = merged.get("head_dim") or hidden // heads
    local = [False] * merged["num_hidden_layers"] if local is None else local
    if kinds is None:
        kinds = (LayerKind(None, single_rope(merged)), LayerKind(window, single_rope(merged)))
    each = [kinds[int(is_local)] for is_local in local]
    used = tuple(kind for place, kind in enumerate(kinds) if kind in each and kind not in kinds[:place])
    fields: dict[str, Any] = {
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
        "layer_kinds": tuple(used.index(kind) for kind in each),
        "tied": bool(merged["tie_word_embeddings"]),
        "attn_scale": head_dim**-0.5,
        "init_std": merged.get("initializer_range", 0.02),
        "config": json.dumps(dict(config)),
    }
    return Arch(**{**fields, **switches})
