"""The config.json of every family: both spellings, defaults of sparse files, what export writes.

Also tests `models/families/config_json.py`, `models/families/gemma.py`, `models/families/llama.py`,
`models/families/qwen.py`.
"""

import care_jax.models as models
from care_jax.models.families.registry import write_config


def test_both_spellings_of_the_config_mean_the_same(tiny):
    """Export writes both spellings: each by itself gives the same architecture."""
    written = write_config(tiny.model.arch, "float32")
    old = {key: value for key, value in written.items() if key not in ("rope_parameters", "layer_types", "dtype")}
    new_only = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern", "torch_dtype")
    new = {key: value for key, value in written.items() if key not in new_only}
    read = models.FAMILIES[written["model_type"]].read
    assert read(old) == read(new) == tiny.model.arch


def test_old_readers_find_the_layers_of_a_new_config():
    text = {"model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window": 8}
    arch = models.FAMILIES["gemma3_text"].read(text | {"layer_types": ["sliding_attention", "full_attention"] * 2})
    written = write_config(arch, "float32")
    del written["layer_types"]
    assert models.FAMILIES["gemma3_text"].read(written) == arch


def test_sparse_configs_take_the_class_defaults():
    text = {"num_hidden_layers": 34, "hidden_size": 2560}
    gemma = models.FAMILIES["gemma3"].read({"model_type": "gemma3", "text_config": text})
    assert (gemma.vocab_size, gemma.head_dim, gemma.heads, gemma.kv_heads) == (262_208, 256, 8, 4)
    assert (gemma.tied, gemma.attn_soft_cap, gemma.final_soft_cap) == (True, None, None)
    assert [kind.rope.theta for kind in gemma.kinds] == [1e6, 1e4]
    mistral = models.FAMILIES["mistral"].read
    assert mistral({"model_type": "mistral"}).kinds[0].window == 4096
    assert mistral({"model_type": "mistral", "sliding_window": None}).kinds[0].window is None
    assert models.FAMILIES["qwen3"].read({"model_type": "qwen3", "num_key_value_heads": 8}).head_dim == 128
    assert models.FAMILIES["gemma2"].read({"model_type": "gemma2"}).attn_soft_cap == 50.0
    llama = models.FAMILIES["llama"].read({"model_type": "llama"})
    assert (llama.kv_heads, llama.head_dim, llama.norm_eps) == (32, 128, 1e-6)
