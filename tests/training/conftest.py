import functools
import pathlib
import tempfile

import jax
import pytest

from care_jax import sharding


@pytest.fixture
def one_device(monkeypatch):
    """A run in this process uses one device, as on a user's CPU, not the eight of the mesh tests."""
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)


@pytest.fixture
def open_folder():
    """A folder that any user may enter and write to; pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        folder.chmod(0o777)
        yield folder
        for path in folder.rglob("*"):
            path.chmod(0o700)
