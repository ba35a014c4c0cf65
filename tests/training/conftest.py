import functools
import pathlib
import tempfile

import jax
import pytest

from care_jax import sharding


@pytest.fixture
def one_device(monkeypatch):
    """A run in this process sees one device, as a user's CPU has, not the eight of the mesh tests."""
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)


@pytest.fixture
def open_folder():
    """A folder that any user may enter and write in: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        folder.chmod(0o777)
        yield folder
        for path in folder.rglob("*"):
            path.chmod(0o700)
