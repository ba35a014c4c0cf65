"""The folder of a run, and who of several processes writes there."""

import pathlib
import sys

import jax

from care_jax.config import Config
from care_jax.errors import UserError


def is_writer() -> bool:
    """Whether this process of several writes what all of them know."""
    return jax.process_index() == 0


def make_folder(config: Config) -> pathlib.Path:
    """The run directory, made where it is not there. Raises UserError where it cannot be."""
    if "://" in config.output_dir:
        raise UserError(
            f"output_dir: found {config.output_dir}, expected a folder: mount the bucket on every host (gcsfuse with "
            "--implicit-dirs and --rename-dir-limit) and name the folder, as launch/README.md shows"
        )
    folder = pathlib.Path(config.output_dir)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: cannot write in {folder}: {error.strerror or error}") from None
    return folder


def say(text: str) -> None:
    """A line of progress on stderr, from one process."""
    if is_writer():
        print(text, file=sys.stderr, flush=True)
