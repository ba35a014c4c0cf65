"""The folder of a run: its resolved configuration, what it was made from, and whether a new start may go on in it."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys

import jax

from care_jax import config as configs
from care_jax.config import Config
from care_jax.data.report import write_whole
from care_jax.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "care-jax")


def is_writer() -> bool:
    """Whether this process of several writes what all of them know."""
    return jax.process_index() == 0


def open_run(config: Config) -> tuple[pathlib.Path, Config]:
    """Makes the folder or enters it again; returns it with the configuration whose dates are those of the first start.

    Raises UserError where the folder holds checkpoints of a run whose maths differ, naming the keys; what came to no
    checkpoint is started anew.
    """
    folder = pathlib.Path(config.output_dir)
    stored = folder / "config.yaml"
    begun = any(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))
    if config.resume == "never" and begun:
        raise UserError(f"resume: never, but {folder} holds checkpoints already; choose another output_dir")
    if config.resume == "must" and not begun:
        raise UserError(f"resume: must, but {folder} holds no checkpoint")
    if stored.exists():
        before = configs.load(stored)
        if config.data.template_date is None:
            config = configs.with_template_date(config, before.data.template_date)
        different = configs.differences(before, config)
        if different and begun:
            shown = "; ".join(f"{key}: {old!r} then, {new!r} now" for key, (old, new) in different.items())
            raise UserError(
                f"{folder} holds a run that differs in what changes its numbers: {shown}. Choose another output_dir"
            )
    if config.data.template_date is None:
        config = configs.with_template_date(config, datetime.date.today().isoformat())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_writer():
            write_whole(stored, configs.dump(config))
    except OSError as error:
        raise UserError(f"output_dir: cannot write in {folder}: {error.strerror or error}") from None
    return folder, config


def write_manifest(folder: pathlib.Path, config: Config, files: dict[str, str], weights: str) -> None:
    """manifest.json: versions, device, commit, configuration hash, sha256 of the data files, the start's weights."""
    manifest = {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "commit": _commit(),
        "config_hash": configs.maths_hash(config),
        "seed": config.seed,
        "data_sha256": files,
        "weights_fingerprint": weights,
    }
    if is_writer():
        write_whole(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _commit() -> str | None:
    """The git commit of the source tree, where the package runs from one."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def say(text: str) -> None:
    """A line of progress on stderr, from one process."""
    if is_writer():
        print(text, file=sys.stderr, flush=True)
