"""What counts as a repository of the hub."""

import pytest

from care_jax.hub import is_hub_id


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "geyang627/CARE", "a/b.c-d_e"])
def test_a_hub_id_is_owner_and_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name)
    (tmp_path / name).mkdir(parents=True)
    assert not is_hub_id(name), "a folder of that name is here"


@pytest.mark.parametrize("path", ["sample", "gpt2", "./owner/name", "~/name", "/owner/name", "a/b/c", "gs://bucket/x"])
def test_other_paths_are_none(path):
    assert not is_hub_id(path)
