"""The cache of compiled programs on disk, which spares a restarted job from compiling again."""

import hashlib
import os
import pathlib
import platform

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled_programs() -> None:
    """Makes this process cache every program that takes a second or more to compile.

    The folder is JAX_COMPILATION_CACHE_DIR, or `default_folder` if the variable is not set. Empty: nothing is cached.
    """
    if VARIABLE not in os.environ:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(default_folder()))


def default_folder() -> pathlib.Path:
    """Returns the folder in the user's cache for this kind of processor.

    A program compiled for one CPU may not run on another with fewer instructions, and hosts may share a home folder.
    """
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    kind = hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "care_jax" / "compiled" / kind
