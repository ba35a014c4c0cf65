"""The config.json of Gemma 2 and of Gemma 3 (its text part)."""

from typing import Any

from care_jax.errors import UserError
from care_jax.models.arch import Arch, LayerKind, Rope
from care_jax.models.families import config_json
from care_jax.models.families.config_json import ConfigJson
from care_jax.textfiles import JsonObject

_GEMMA2: JsonObject = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = _GEMMA2 | {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


def _common(config: ConfigJson, merged: ConfigJson, defaults: ConfigJson, local: list[bool], **switches: Any) -> Arch:
    if merged.get("use_bidirectional_attention"):
        raise UserError("config.json: use_bidirectional_attention is not supported: this library trains causal models")
    biased = bool(config.get("attention_bias", False))
    return config_json.read(
        config,
        defaults,
        local=local,
        gemma_norms=True,
        qkv_bias=biased,
        o_bias=biased,
        embed_scale=merged["hidden_size"] ** 0.5,
        attn_scale=merged["query_pre_attn_scalar"] ** -0.5,
        final_soft_cap=merged["final_logit_softcapping"],
        **switches,
    )


def read_gemma2(config: ConfigJson) -> Arch:
    """Reads Gemma 2: even layers (from 0) are local; attention scores and logits are soft-capped."""
    merged = {**_GEMMA2, **config}
    even = [layer % 2 == 0 for layer in range(merged["num_hidden_layers"])]
    local = config_json.local_layers(merged, even)
    return _common(
        config, merged, _GEMMA2, local, window=merged["sliding_window"], attn_soft_cap=merged["attn_logit_softcapping"]
    )


def read_gemma3_text(config: ConfigJson) -> Arch:
    """Reads a Gemma 3 text model: five local layers, then a global one; q and k are normed; no soft caps.

    Local and global layers have their own rotary base, and `rope_scaling` applies to the global layers only.
    """
    merged = {**_GEMMA3, **config}
    pattern = merged.get("sliding_window_pattern") or merged.get("_sliding_window_pattern") or 6
    default = [(layer + 1) % pattern != 0 for layer in range(merged["num_hidden_layers"])]
    local = config_json.local_layers(merged, default)
    settings = merged.get("rope_parameters") or {}
    length = merged["max_position_embeddings"]
    scaled = {**(settings.get("full_attention") or {}), **(merged.get("rope_scaling") or {})}
    global_rope = config_json.rope(merged.get("rope_theta") or 1_000_000.0, scaled, length)
    local_theta = merged.get("rope_local_base_freq") or 10_000.0
    local_rope = config_json.rope(local_theta, settings.get("sliding_attention"), length)
    kinds = (LayerKind(None, global_rope), LayerKind(merged["sliding_window"], local_rope))
    return _common(config, merged, _GEMMA3, local, qk_norm=True, kinds=kinds)


def read_gemma3(config: ConfigJson) -> Arch:
    """Reads the text part of a multimodal Gemma 3; it is saved as a text model, without its vision tower."""
    text = dict(config.get("text_config") or {})
    text["model_type"] = "gemma3_text"
    text["architectures"] = ["Gemma3ForCausalLM"]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype", "tie_word_embeddings"):
        if key in config:
            text.setdefault(key, config[key])
    return read_gemma3_text(text)


def gemma3_layer_keys(arch: Arch) -> JsonObject:
    """Returns the keys of a Gemma 3 config.json for the local layers and the rotary settings of both kinds."""
    local = [arch.kinds[kind].window is not None for kind in arch.layer_kinds]
    keys: JsonObject = {"layer_types": ["sliding_attention" if is_local else "full_attention" for is_local in local]}
    period = local.index(False) + 1 if False in local else 0
    # The first versions for Gemma 3 read nothing but the pattern; a pattern that the file came with is kept.
    if period and local == [(layer + 1) % period != 0 for layer in range(arch.layers)]:
        keys["sliding_window_pattern"] = arch.config_dict.get("sliding_window_pattern", period)
    # A model without layers of one kind gets the class's default for it, which nothing reads.
    ropes = [arch.kinds[kind].rope for kind in arch.layer_kinds]
    global_rope = next((rope for rope, is_local in zip(ropes, local) if not is_local), Rope(theta=1_000_000.0))
    local_rope = next((rope for rope, is_local in zip(ropes, local) if is_local), Rope())
    return keys | {
        "rope_local_base_freq": local_rope.theta,
        "rope_parameters": {
            "full_attention": config_json.rope_parameters(global_rope),
            "sliding_attention": config_json.rope_parameters(local_rope),
        },
        "rope_theta": global_rope.theta,
        "rope_scaling": config_json.rope_settings(global_rope),
    }
