"""Eight forced host devices, strict shapes, and the flags that bring in the slow and the parity checks."""

import os

# Before jax starts: every mesh test runs in this process.
# Programs here are tiny and run once: optimizing their machine code would take most of the time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of XLA's CPU client, else as many as cores or devices: a collective holds one while it waits for the other
# devices, and those may be in another one that runs at the same time; with none left the program hangs.
os.environ.setdefault("NPROC", "32")

import pathlib
import tempfile

# Programs that several tests share, those of the command in child processes too, are compiled once per session.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="care_jax_compiled_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run what takes minutes or needs real pretrained models")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with real data and tools, named by CARE_JAX_SHARED."""
    folder = os.environ.get("CARE_JAX_SHARED")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("CARE_JAX_SHARED names no folder with the real data")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def real_models() -> pathlib.Path:
    """The folder that tools/real_models.py wrote, named by CARE_JAX_REAL_MODELS."""
    folder = os.environ.get("CARE_JAX_REAL_MODELS")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("CARE_JAX_REAL_MODELS names no folder made by tools/real_models.py")
    return pathlib.Path(folder)
