"""The config.json of Llama 2, 3, 3.1 and 3.2 (also SmolLM2), and of Mistral."""

from care_jax.models.arch import Arch
from care_jax.models.families import config_json
from care_jax.models.families.config_json import ConfigJson

_LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_MISTRAL = _LLAMA | {
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}


def read_llama(config: ConfigJson) -> Arch:
    """Reads Llama: every layer is global; biases only if the file asks for them."""
    biased = bool(config.get("attention_bias", False))
    return config_json.read(
        config, _LLAMA, qkv_bias=biased, o_bias=biased, mlp_bias=bool(config.get("mlp_bias", False))
    )


def read_mistral(config: ConfigJson) -> Arch:
    """Reads Mistral: every layer is local; an absent sliding_window is 4096 as in the class, null is no window."""
    merged = {**_MISTRAL, **config}
    return config_json.read(
        config, _MISTRAL, local=[True] * merged["num_hidden_layers"], window=merged["sliding_window"]
    )
