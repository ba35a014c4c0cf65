"""Compiled programs are kept on disk, so that a job that starts again does not compile again."""

import hashlib
import os
import pathlib
import platform

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def folder() -> pathlib.Path:
    """Where they are kept by default: in the user's cache, apart for each kind of processor.

    A program compiled for one CPU may not run on another with fewer instructions, and hosts may share a home.
    """
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    kind = hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "care_jax" / "compiled" / kind


def keep() -> None:
    """From here on this process keeps what takes a second or more to compile: in JAX_COMPILATION_CACHE_DIR, in `folder`
    where that is not set, nowhere where it is empty.
    """
    if VARIABLE not in os.environ:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder()))
