"""Qwen 2, 2.5 and Qwen 3: what their config.json means."""

from typing import Any

from care_jax.models.arch import Arch
from care_jax.models.families import config_json
from care_jax.models.families.config_json import Config

_QWEN2 = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_QWEN3 = _QWEN2 | {"head_dim": 128}


def _windows(config: Config, defaults: Config) -> dict[str, Any]:
    """Layers from max_window_layers on are local, and only where use_sliding_window says so."""
    merged = {**defaults, **config}
    window = merged["sliding_window"] if merged["use_sliding_window"] else None
    late = [layer >= merged["max_window_layers"] for layer in range(merged["num_hidden_layers"])]
    return {"local": config_json.layer_types(merged, late), "window": window}


def read_qwen2(config: Config) -> Arch:
    """Biases on q, k and v, none on o."""
    return config_json.read(config, _QWEN2, qkv_bias=True, **_windows(config, _QWEN2))


def read_qwen3(config: Config) -> Arch:
    """No biases unless asked for; q and k normed a head at a time, before the rotation."""
    biased = bool(config.get("attention_bias", False))
    return config_json.read(config, _QWEN3, qkv_bias=biased, o_bias=biased, qk_norm=True, **_windows(config, _QWEN3))
