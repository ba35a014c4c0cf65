import functools

import jax
import pytest

from care_jax import sharding


@pytest.fixture
def one_device(monkeypatch):
    """A run in this process sees one device, as a user's CPU has, not the eight of the mesh tests."""
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)
