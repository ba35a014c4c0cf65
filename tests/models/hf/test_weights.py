"""Weights go to their place on a mesh, and tensors that do not fit are listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import care_jax.models as models
from care_jax import sharding
from care_jax.errors import UserError
from tests.models.folders import assert_same_tensors, copy_of
from tests.models.tiny_models import GOLDEN, tiny_model


@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2)])
def test_weights_go_to_their_place_on_the_mesh(axes, tmp_path):
    name = "llama3"  # 4 heads, 2 key heads, width 32: divisible by these meshes
    tiny = tiny_model(name)
    mesh = sharding.make_mesh(*axes)
    model, params = models.from_pretrained(tiny.folder, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params)
    expected = models.param_shardings(model.arch, mesh)
    jax.tree.map(lambda x, s: np.testing.assert_equal(x.sharding, s), params, expected)
    models.save_pretrained(tmp_path / "out", model, params)
    assert_same_tensors(load_file(tmp_path / "out" / "model.safetensors"), load_file(tiny.folder / "model.safetensors"))
    tokens = jnp.asarray(np.tile(tiny.golden["tokens"], (4, 1)))
    with jax.set_mesh(mesh):
        logits = jax.jit(lambda p, t: model.apply({"params": p}, t))(params, tokens)
    length = tiny.golden["lengths"][1]
    np.testing.assert_allclose(logits[0], tiny.golden["logits"][0], atol=1e-4)
    np.testing.assert_allclose(logits[7, :length], tiny.golden["logits"][1, :length], atol=1e-4)


def test_a_mesh_that_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"kv_heads=1.*2 parts"):
        models.from_pretrained(GOLDEN / "gemma2", mesh=sharding.make_mesh(2, 2, 2))


def test_every_misfit_tensor_is_listed_at_once(tmp_path):
    folder = copy_of("llama3", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(48, np.float32)
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((7, 32), np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(6, np.float32)  # old files carry it
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1  # tied: the embedding wins
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        models.from_pretrained(folder)
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "missing model.layers.1.mlp.up_proj.weight [48, 32]",
        "missing model.norm.weight [32]",
        "surplus model.layers.0.self_attn.q_proj.bias [48]",
        "misshapen model.layers.0.self_attn.k_proj.weight: found [7, 32], expected [24, 32]",
    ]
