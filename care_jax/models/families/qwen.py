"""The config.json of Qwen 2, Qwen 2.5 and Qwen 3."""

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


def _local_layers(config: Config, defaults: Config) -> list[bool]:
    """Returns whether each layer is local: by default those from max_window_layers on."""
    merged = {**defaults, **config}
    late = [layer >= merged["max_window_layers"] for layer in range(merged["num_hidden_layers"])]
    return config_json.local_layers(merged, late)


def _window(config: Config, defaults: Config) -> int | None:
    """Returns the window of the local layers: none unless use_sliding_window is set."""
    merged = {**defaults, **config}
    return merged["sliding_window"] if merged["use_sliding_window"] else None


def read_qwen2(config: Config) -> Arch:
    """Reads Qwen 2 and 2.5: biases on q, k and v, none on o."""
    local, window = _local_layers(config, _QWEN2), _window(config, _QWEN2)
    return config_json.read(config, _QWEN2, local, window=window, qkv_bias=True)


def read_qwen3(config: Config) -> Arch:
    """Reads Qwen 3: no biases unless the file asks for them; each head of q and k is normed before the rotation."""
    biased = bool(config.get("attention_bias", False))
    local, window = _local_layers(config, _QWEN3), _window(config, _QWEN3)
    return config_json.read(config, _QWEN3, local, window=window, qkv_bias=biased, o_bias=biased, qk_norm=True)
