"""Export to Hugging Face folders: the same bits, names and dtypes; shards; the files beside the weights."""

import json
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

import care_jax.models as models
from tests.models.folders import assert_same_tensors, copy_of
from tests.models.tiny_models import tiny_model


def test_an_export_has_the_same_names_bit_for_bit(tiny, tmp_path):
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params)
    assert_same_tensors(load_file(tmp_path / "out" / "model.safetensors"), load_file(tiny.folder / "model.safetensors"))
    again = models.read_config(tmp_path / "out")
    assert again == tiny.model.arch


def test_bfloat16_is_saved_as_bfloat16_unless_weights_changed(tmp_path):
    folder = copy_of("llama3", tmp_path, torch_dtype="bfloat16")
    narrow = {name: w.astype(ml_dtypes.bfloat16) for name, w in load_file(folder / "model.safetensors").items()}
    save_file(narrow, folder / "model.safetensors", metadata={"format": "pt"})
    model, params = models.from_pretrained(folder)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    models.save_pretrained(tmp_path / "same", model, params)
    assert_same_tensors(load_file(tmp_path / "same" / "model.safetensors"), narrow)
    assert json.loads((tmp_path / "same" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    params["norm"]["weight"] = params["norm"]["weight"] * 1.001
    models.save_pretrained(tmp_path / "changed", model, params)
    changed = load_file(tmp_path / "changed" / "model.safetensors")
    np.testing.assert_array_equal(changed["model.norm.weight"], np.asarray(params["norm"]["weight"]))


def test_sharded_files_are_written_indexed_and_read(tmp_path):
    tiny = tiny_model("qwen2")
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params, shard_bytes=30_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "out" / name).stat().st_size < 35_000 for name in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    _, params = models.from_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params)
    # A second export into the folder removes stale shards.
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params)
    assert [path.name for path in (tmp_path / "out").glob("*safetensors*")] == ["model.safetensors"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_the_files_beside_the_weights_are_copied(tmp_path):
    tiny = tiny_model("llama3")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("generation_config.json", "tokenizer.model", "chat_template.jinja", "evil.py", "config.json"):
        (source / name).write_text("{}")
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params, source=source)
    weights = {"config.json", "model.safetensors"}
    carried = {"generation_config.json", "tokenizer.model", "chat_template.jinja"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == weights | carried
    # Without a source: files of the folder that the model was read from; with another tokenizer, not the tokenizer's.
    model, params = models.from_pretrained(tmp_path / "out")
    models.save_pretrained(tmp_path / "again", model, params)
    assert {path.name for path in (tmp_path / "again").iterdir()} == weights | carried
    other = types.SimpleNamespace(save_pretrained=lambda made: (made / "tokenizer.json").write_text("{}"))
    models.save_pretrained(tmp_path / "other", model, params, other)
    names = {path.name for path in (tmp_path / "other").iterdir()}
    assert names == weights | {"generation_config.json", "tokenizer.json"}
