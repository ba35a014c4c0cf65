"""Adapters: no effect at the start, merging equals applying, PEFT folders are written and read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from care_jax import sharding
from care_jax.errors import UserError
from care_jax.models import lora as lora_lib
from tests.models.tiny_models import tiny_model


def adapted(name="llama3", r=3, alpha=6.0, target_modules="all"):
    """Returns a tiny model with random adapters, B included."""
    tiny = tiny_model(name)
    model = lora_lib.attach(tiny.model, r, alpha)
    lora = lora_lib.init(model, r, target_modules, seed=1)
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float32), lora)
    return tiny, model, lora, noise


def test_fresh_adapters_have_no_effect_and_trained_ones_merge():
    tiny, model, fresh, trained = adapted("qwen2")
    tokens = jnp.asarray(tiny.golden["tokens"])
    with_adapters = jax.jit(lambda lora: model.apply({"params": tiny.params, "lora": lora}, tokens))
    base = jax.jit(lambda params: model.apply({"params": params}, tokens))
    silent = with_adapters(fresh)
    np.testing.assert_array_equal(silent, base(tiny.params))
    applied = with_adapters(trained)
    assert np.abs(applied - silent).max() > 0.1
    merged = base(lora_lib.merge(model, tiny.params, trained))
    np.testing.assert_allclose(merged, applied, atol=1e-4)


def test_a_base_in_bfloat16_merges_without_loss():
    tiny, model, _, trained = adapted(target_modules=["q_proj", "down_proj"])
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    merged = lora_lib.merge(model, base, trained)
    q = merged["blocks"]["attn"]["q"]["weight"]
    assert q.dtype == jnp.float32
    a, b = (np.asarray(trained["blocks"]["attn"]["q"][name]) for name in "ab")
    expected = np.asarray(base["blocks"]["attn"]["q"]["weight"], np.float32) + 2.0 * np.einsum("lhdr,lre->lhde", b, a)
    np.testing.assert_allclose(q, expected, atol=1e-5)
    assert merged["blocks"]["attn"]["k"]["weight"].dtype == jnp.bfloat16


def test_adapters_only_where_asked_and_the_same_on_every_mesh():
    tiny, model, lora, _ = adapted(target_modules=["v_proj", "q_proj"])
    assert sorted(lora["blocks"]) == ["attn"]
    assert sorted(lora["blocks"]["attn"]) == ["q", "v"]
    assert lora["blocks"]["attn"]["q"]["b"].shape == (2, 4, 12, 3)
    a = np.asarray(lora["blocks"]["attn"]["q"]["a"])
    assert 0.9 * 32**-0.5 < np.abs(a).max() <= 32**-0.5
    mesh = sharding.make_mesh(2, 2, 2)
    placed = lora_lib.init(model, 3, ["v_proj", "q_proj"], seed=1, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, lora)
    expected = lora_lib.shardings(tiny.model.arch, 3, ["v_proj", "q_proj"], mesh)
    jax.tree.map(lambda x, s: np.testing.assert_equal(x.sharding, s), placed, expected)


def test_a_peft_folder_is_written_and_read(tmp_path):
    tiny, model, _, trained = adapted()
    lora_lib.save_adapter(tmp_path / "adapter", model, trained, base="some/base", revision="abc")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 6.0, "LORA")
    assert (config["base_model_name_or_path"], config["revision"]) == ("some/base", "abc")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(names) == 2 * 7 * tiny.model.arch.layers
    assert names["base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"].shape == (3, 48)
    again, lora = lora_lib.load_adapter(tmp_path / "adapter", tiny.model)
    assert again.lora_scale == 2.0
    jax.tree.map(np.testing.assert_array_equal, lora, trained)


def test_mistakes_are_named(tmp_path):
    tiny, model, _, trained = adapted()
    with pytest.raises(UserError, match=r"'q_pro' is not one of all, q_proj.*did you mean 'q_proj'"):
        lora_lib.targets(["q_pro"])
    with pytest.raises(UserError, match="no such file"):
        lora_lib.load_adapter(tmp_path, tiny.model)
    lora_lib.save_adapter(tmp_path / "adapter", model, trained, base="some/base")
    with pytest.raises(UserError, match=r"misshapen .*q_proj.lora_A.weight: found \[3, 32\], expected \[3, 24\]"):
        lora_lib.load_adapter(tmp_path / "adapter", tiny_model("gemma2").model)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    with pytest.raises(UserError, match="use_dora: True is not supported; expected False"):
        lora_lib.load_adapter(tmp_path / "adapter", tiny.model)
    with pytest.raises(ValueError, match="lora_scale"):
        tiny.model.apply({"params": tiny.params, "lora": trained}, jnp.ones((1, 2), jnp.int32))
