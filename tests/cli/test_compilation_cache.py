"""The folder in which compiled programs are cached."""

import jax
import pytest

from care_jax.cli import compilation_cache


@pytest.fixture(autouse=True)
def restored_setting():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_default_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv(compilation_cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(compilation_cache.default_folder())
    assert compilation_cache.default_folder().is_relative_to(tmp_path / "care_jax")


@pytest.mark.parametrize("value", ["elsewhere", ""])
def test_the_environment_variable_decides(monkeypatch, value):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv(compilation_cache.VARIABLE, value)
    compilation_cache.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before
