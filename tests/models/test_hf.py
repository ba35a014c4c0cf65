"""In and out of Hugging Face folders: names, bits, dialects, and what is refused."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import GOLDEN, tiny_model

import care_jax.models as models
from care_jax import sharding
from care_jax.errors import UserError
from care_jax.models.families.registry import write_config


def copy_of(name, tmp_path, **changes):
    """A golden folder with its config.json changed; a key set to ... goes."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not ...}))
    return folder


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape, name
        assert ours[name].tobytes() == tensor.tobytes(), name


def test_export_gives_the_same_bits_under_the_same_names(tiny, tmp_path):
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params)
    assert_same_tensors(load_file(tmp_path / "out" / "model.safetensors"), load_file(tiny.folder / "model.safetensors"))
    again = models.read_config(tmp_path / "out")
    assert again == tiny.model.arch


def test_both_spellings_of_the_config_mean_the_same(tiny):
    """What export writes holds both dialects: each alone gives the same architecture."""
    written = write_config(tiny.model.arch, "float32")
    old = {key: value for key, value in written.items() if key not in ("rope_parameters", "layer_types", "dtype")}
    new_only = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern", "torch_dtype")
    new = {key: value for key, value in written.items() if key not in new_only}
    read = models.FAMILIES[written["model_type"]].read
    assert read(old) == read(new) == tiny.model.arch


def test_the_layers_of_a_new_config_are_told_to_old_readers():
    text = {"model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window": 8}
    arch = models.FAMILIES["gemma3_text"].read(text | {"layer_types": ["sliding_attention", "full_attention"] * 2})
    written = write_config(arch, "float32")
    del written["layer_types"]
    assert models.FAMILIES["gemma3_text"].read(written) == arch


def test_bfloat16_leaves_as_it_came_and_changed_weights_keep_their_bits(tmp_path):
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


def test_compute_and_parameter_dtypes_are_apart():
    model, params = models.from_pretrained(GOLDEN / "llama3", dtype="bfloat16", param_dtype="float32")
    assert model.dtype == jnp.bfloat16
    assert params["norm"]["weight"].dtype == jnp.float32
    _, params = models.from_pretrained(GOLDEN / "llama3", dtype="bfloat16")
    assert params["norm"]["weight"].dtype == jnp.bfloat16
    hidden = jax.eval_shape(lambda p, t: model.apply({"params": p}, t, method="hidden"), params, jnp.ones((1, 4), int))
    assert hidden.dtype == jnp.bfloat16
    logits = jax.eval_shape(lambda p, t: model.apply({"params": p}, t), params, jnp.ones((1, 4), int))
    assert logits.dtype == jnp.float32


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
    # A second export into the folder leaves no stale shard behind.
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params)
    assert [path.name for path in (tmp_path / "out").glob("*safetensors*")] == ["model.safetensors"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_what_stands_beside_the_weights_is_carried_over(tmp_path):
    tiny = tiny_model("llama3")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("generation_config.json", "tokenizer.model", "chat_template.jinja", "evil.py", "config.json"):
        (source / name).write_text("{}")
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params, source=source)
    weights = {"config.json", "model.safetensors"}
    carried = {"generation_config.json", "tokenizer.model", "chat_template.jinja"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == weights | carried
    # Without a source: what stood where the model was read from; beside another tokenizer, none of its own files.
    model, params = models.from_pretrained(tmp_path / "out")
    models.save_pretrained(tmp_path / "again", model, params)
    assert {path.name for path in (tmp_path / "again").iterdir()} == weights | carried
    other = types.SimpleNamespace(save_pretrained=lambda made: (made / "tokenizer.json").write_text("{}"))
    models.save_pretrained(tmp_path / "other", model, params, other)
    names = {path.name for path in (tmp_path / "other").iterdir()}
    assert names == weights | {"generation_config.json", "tokenizer.json"}


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


def test_mistakes_are_named(tmp_path):
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


def test_a_store_is_read_where_it_is(tmp_path, monkeypatch):
    """Through fsspec's own store in memory, as gs:// would be; only the small files come over."""
    import fsspec

    monkeypatch.setenv("CARE_JAX_CACHE", str(tmp_path / "cache"))
    tiny = tiny_model("qwen2")
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params, shard_bytes=30_000)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "out") + "/", "/bucket/model/", recursive=True)
    for mesh in (None, sharding.make_mesh(2, 2, 2)):
        model, params = models.from_pretrained("memory://bucket/model", mesh=mesh)
        assert model.arch == tiny.model.arch
        jax.tree.map(np.testing.assert_array_equal, params, tiny.params)
    copied = {path.name for path in models.resolve("memory://bucket/model").iterdir()}
    assert copied == {"config.json", "model.safetensors.index.json", ".weights_url"}
    with pytest.raises(UserError, match="memory://bucket/nowhere: no such folder"):
        models.from_pretrained("memory://bucket/nowhere")
    with pytest.raises(UserError, match="nosuch://model: cannot be read"):
        models.from_pretrained("nosuch://model")


def test_a_hub_id_is_fetched_at_its_revision_without_code_or_pickles(monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(GOLDEN / "llama3")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model, _ = models.from_pretrained("some/model", revision="abc")
    assert model.arch == tiny_model("llama3").model.arch
    assert (asked["name"], asked["revision"]) == ("some/model", "abc")
    assert "*.safetensors" in asked["allow_patterns"]
    assert "consolidated*" in asked["ignore_patterns"]
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".py", ".pt", "*"))]
