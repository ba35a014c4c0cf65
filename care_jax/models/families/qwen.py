"""The config.json of Qwen 2, Qwen 2.5 and Qwen 3."""

from typing import Any

from care_jax.models.arch import Arch
from care_jax.models.families import config_json
from care_jax.models.families.config_json import ConfigJson

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


def read_qwen2(config: ConfigJson) -> Arch:
    """Reads Qwen 2 and 2.5: biases on q, k and v, none on o."""
    return _read(config, _QWEN2, qkv_bias=True)


def read_qwen3(config: ConfigJson) -> Arch:
    """Reads Qwen 3: no biases unless the file asks for them; each head of q and k is normed before the rotation."""
    biased = bool(config.get("attention_bias", False))
    return _read(config, _QWEN3, qkv_bias=biased, o_bias=biased, qk_norm=True)


def _read(config: ConfigJson, defaults: ConfigJson, **switches: Any) -> Arch:
    """Reads either: by default the layers from max_window_layers on are local, and use_sliding_window is off."""
    merged = {**defaults, **config}
    late = [layer >= merged["max_window_layers"] for layer in range(merged["num_hidden_layers"])]
    window = merged["sliding_window"] if merged["use_sliding_window"] else None
    return config_json.read(config, defaults, config_json.local_layers(merged, late), window=window, **switches)
