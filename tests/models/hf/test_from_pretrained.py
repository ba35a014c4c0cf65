"""Import of Hugging Face folders: dtypes, multimodal checkpoints, and what is refused.

Also tests `models/hf/safetensors_io.py`.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import care_jax.models as models
from care_jax.errors import UserError
from tests.models.folders import assert_same_tensors, copy_of
from tests.models.tiny_models import GOLDEN, tiny_model


def test_compute_and_parameter_dtypes_are_independent():
    model, params = models.from_pretrained(GOLDEN / "llama3", dtype="bfloat16", param_dtype="float32")
    assert model.dtype == jnp.bfloat16
    assert params["norm"]["weight"].dtype == jnp.float32
    _, params = models.from_pretrained(GOLDEN / "llama3", dtype="bfloat16")
    assert params["norm"]["weight"].dtype == jnp.bfloat16
    hidden = jax.eval_shape(lambda p, t: model.apply({"params": p}, t, method="hidden"), params, jnp.ones((1, 4), int))
    assert hidden.dtype == jnp.bfloat16
    logits = jax.eval_shape(lambda p, t: model.apply({"params": p}, t), params, jnp.ones((1, 4), int))
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_checkpoint(prefix, tmp_path):
    tiny = tiny_model("gemma3_text")
    text = json.loads((tiny.folder / "config.json").read_text())
    folder = tmp_path / "multimodal"
    folder.mkdir()
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 106]}))
    tensors = load_file(tiny.folder / "model.safetensors")
    renamed = {prefix + name.removeprefix("model."): w for name, w in tensors.items()}
    renamed["vision_tower.a.weight"] = renamed["multi_modal_projector.b"] = np.zeros((2, 2), np.float32)
    save_file(renamed, folder / "model.safetensors")
    model, params = models.from_pretrained(folder)
    assert model.arch == tiny.model.arch
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params)
    models.save_pretrained(tmp_path / "text", model, params)
    assert_same_tensors(load_file(tmp_path / "text" / "model.safetensors"), tensors)
    written = json.loads((tmp_path / "text" / "config.json").read_text())
    assert (written["model_type"], written["eos_token_id"]) == ("gemma3_text", [1, 106])


def test_errors_name_the_mistake(tmp_path):
    def refused(match, **changes):
        folder = copy_of("llama3", tmp_path, **changes)
        with pytest.raises(UserError, match=match):
            models.from_pretrained(folder)
        shutil.rmtree(folder)

    refused(
        r"model_type 'lama' is not supported \(did you mean 'llama'\?\); supported: llama, mistral, qwen2",
        model_type="lama",
    )
    refused("model_type None", model_type=...)
    refused("rope_type 'yarn' is not supported; expected default, linear or llama3", rope_scaling={"type": "yarn"})
    refused("activation 'relu2' is not supported", hidden_act="relu2")
    refused("num_attention_heads 4 does not divide by num_key_value_heads 3", num_key_value_heads=3)
    refused("quantized", quantization_config={"bits": 4})
    with pytest.raises(UserError, match="no such folder"):
        models.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"model.revision: found 'abc', but .*llama3 is not a hub id"):
        models.from_pretrained(GOLDEN / "llama3", revision="abc")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        models.from_pretrained(empty)
    (empty / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        models.from_pretrained(empty)
    shutil.copy(GOLDEN / "llama3" / "config.json", empty)
    (empty / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"no \.safetensors file \(only pytorch_model\.bin: pickles are not read\)"):
        models.from_pretrained(empty)
    (empty / "model.safetensors").write_bytes((GOLDEN / "llama3" / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        models.from_pretrained(empty)
    (empty / "model.safetensors").write_bytes(b"<html>" * 10)
    with pytest.raises(UserError, match="not a safetensors file"):
        models.from_pretrained(empty)
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    for header, match in (
        ([], "its header is damaged"),
        ({"w": [0]}, "its header is damaged"),
        ({"w": entry}, "bytes 0 to 4"),
    ):
        text = json.dumps(header).encode()
        (empty / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        with pytest.raises(UserError, match=f"not a safetensors file: .*{match}"):
            models.from_pretrained(empty)
    for index in ("{", "[]", '{"weight_map": 1}'):
        (empty / "model.safetensors.index.json").write_text(index)
        with pytest.raises(UserError, match=r"index\.json: not an index"):
            models.from_pretrained(empty)
    for wrong in ({"dtype": "float33"}, {"dtype": "int8"}, {"attention": "flash"}, {"remat": "some"}):
        with pytest.raises(UserError, match=next(iter(wrong.values()))):
            models.from_pretrained(GOLDEN / "llama3", **wrong)
