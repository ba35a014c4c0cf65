"""Models at a URL and on the hub: what is fetched, and what is read where it is."""

import jax
import numpy as np
import pytest

import care_jax.models as models
from care_jax import sharding
from care_jax.errors import UserError
from tests.models.tiny_models import GOLDEN, tiny_model


def test_a_store_is_read_where_it_is(tmp_path, monkeypatch):
    """Through the store of fsspec in memory, as gs:// would be: only the small files are copied."""
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
