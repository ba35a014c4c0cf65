"""Finds a model: in a local folder, on the Hugging Face hub, or at a URL of any store of fsspec (gs://, s3://)."""

import hashlib
import os
import pathlib
from collections.abc import Callable

import fsspec
import jax

from care_jax.distributed import anywhere, is_writer
from care_jax.errors import UserError
from care_jax.hub import is_hub_id

# The files that are fetched: never code, never pickles.
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "*.spm", "*.tiktoken")
# In the local copy of a remote folder, this file holds the URL at which the weights are read; they are never copied.
WEIGHTS_URL = ".weights_url"


def _first_alone(work: Callable[[], str]) -> pathlib.Path:
    """Calls `work` in process 0 first, so that a shared disk is filled once; then in the others, for their own disks.

    An error of process 0 is raised there, and a UserError in the others.
    """
    if jax.process_count() == 1:
        return pathlib.Path(work())
    folder: str | None = None
    failed: Exception | None = None
    if is_writer():
        try:
            folder = work()
        except Exception as error:
            failed = error  # raised below, after the other processes know
    if anywhere(failed is not None):
        raise failed or UserError("model.path: process 0 could not read it; see its error")
    return pathlib.Path(work() if folder is None else folder)


def cache_folder() -> pathlib.Path:
    """Returns the folder for copies of remote files: $CARE_JAX_CACHE, else ~/.cache/care_jax."""
    return pathlib.Path(os.environ.get("CARE_JAX_CACHE") or pathlib.Path.home() / ".cache" / "care_jax")


def _from_url(url: str) -> pathlib.Path:
    """Copies the small files of a remote folder into a local one, with the URL of its weights; returns the latter."""
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]

    def copy() -> str:
        try:
            store, root = fsspec.core.url_to_fs(url)
            if not store.isdir(root):
                raise UserError(f"model.path: {url}: no such folder")
            folder.mkdir(parents=True, exist_ok=True)
            names = {WEIGHTS_URL}
            for pattern in _SMALL_FILES:
                for file in store.glob(f"{root.rstrip('/')}/{pattern}"):
                    name = file.rsplit("/", 1)[-1]
                    # Another process may be reading the folder: each file is replaced by a rename.
                    store.get_file(file, str(folder / f".{os.getpid()}.{name}"))
                    os.replace(folder / f".{os.getpid()}.{name}", folder / name)
                    names.add(name)
            for old in folder.iterdir():
                if old.name not in names and not old.name.startswith("."):
                    old.unlink()  # the store no longer has it
        except (ImportError, ValueError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"model.path: {url}: cannot be read: {error}") from error
        (folder / WEIGHTS_URL).write_text(url.rstrip("/"))
        return str(folder)

    return _first_alone(copy)


def _from_hub(name: str, revision: str | None) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def download() -> str:
        # Some repositories hold their weights a second time, in the layout of another project.
        return huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*_SMALL_FILES, "*.safetensors"],
            ignore_patterns=["consolidated*", "*/*"],
        )

    try:
        return _first_alone(download)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model.path: {name}: no such folder, and the hub does not have it: {error}") from error


def resolve(path: str | pathlib.Path, revision: str | None = None) -> pathlib.Path:
    """Returns the local folder of a path, a hub id (at `revision`) or a URL; of several processes, one downloads first.

    Only the small files of a URL are copied: weights are read from the URL. Raises UserError if there is no such model,
    and if a revision is given for anything but a hub id.
    """
    folder = pathlib.Path(path).expanduser()
    remote = "://" in str(path)
    if revision is not None and (remote or folder.is_dir()):
        raise UserError(f"model.revision: found {revision!r}, but {path} is not a hub id, which alone has revisions")
    if remote:
        return _from_url(str(path))
    if folder.is_dir():
        return folder
    if not is_hub_id(path):
        raise UserError(f"model.path: {path}: no such folder, and not a hub id (owner/name)")
    return _from_hub(str(path), revision)
