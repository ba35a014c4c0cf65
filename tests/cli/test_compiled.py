"""Where compiled programs are kept."""

import jax
import pytest

from care_jax.cli import compiled


@pytest.fixture(autouse=True)
def as_it_was():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_in_the_users_cache_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv(compiled.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.keep()
    assert jax.config.jax_compilation_cache_dir == str(compiled.folder())
    assert compiled.folder().is_relative_to(tmp_path / "care_jax")


@pytest.mark.parametrize("value", ["elsewhere", ""])
def test_the_variable_decides(monkeypatch, value):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv(compiled.VARIABLE, value)
    compiled.keep()
    assert jax.config.jax_compilation_cache_dir == before
