"""Files on this machine or in a bucket (gs://BUCKET/...), and the mirror that copies a local folder to a bucket.

Orbax and TensorStore write the checkpoints to the bucket themselves. A process writes every other file in a folder on
its own machine, and `Mirror` uploads a whole file when it has changed: an object cannot be appended to, but its write
is atomic.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Iterator
from typing import TypeAlias

import fsspec
from etils import epath

from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.training.errors import RunFailed

StoragePath: TypeAlias = pathlib.Path | epath.Path

_UPLOAD_SECONDS = 30.0  # between two uploads of what changed; longer if an upload takes long
# Folders that are uploaded and never downloaded: a resumed run reads nothing in them. Orbax alone writes checkpoints.
_UPLOAD_ONLY = frozenset({"checkpoints", "export", "profile", "tensorboard"})
_RANGE_BYTES, _RANGES = 16 * 2**20, 8  # a file in a bucket is read in ranges of this size, 8 at a time


# ---- A path on this machine or in a bucket


def is_remote(path: object) -> bool:
    return str(path).startswith("gs://")


def path_of(path: str | os.PathLike[str]) -> StoragePath:
    """Returns a path of the file system or of a bucket; Orbax takes either."""
    return epath.Path(path) if is_remote(path) else pathlib.Path(path)


def files(folder: StoragePath) -> dict[str, int]:
    """Returns {path inside the folder, with /: bytes} for every file below the folder."""
    if isinstance(folder, pathlib.Path):
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    store, root = _store(folder)
    return {name.removeprefix(f"{root}/"): info["size"] for name, info in store.find(root, detail=True).items()}


def size(path: StoragePath) -> int | None:
    """Returns the bytes of a file; None if there is none."""
    return epath.Path(path).stat().length if path.is_file() else None


def sha256(path: StoragePath) -> str:
    """Returns the hexadecimal sha256 of a file's content."""
    if isinstance(path, pathlib.Path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    store, name = _store(path)
    digest, length = hashlib.sha256(), store.size(name)
    for first in range(0, length, _RANGE_BYTES * _RANGES):
        starts = range(first, min(first + _RANGE_BYTES * _RANGES, length), _RANGE_BYTES)
        ends = [min(start + _RANGE_BYTES, length) for start in starts]
        for data in store.cat_ranges([name] * len(starts), list(starts), ends, on_error="raise"):
            digest.update(data)
    return digest.hexdigest()


def remove(folder: StoragePath, *, ignore_errors: bool = False) -> None:
    """Removes a folder and everything in it.

    Raises OSError if that fails, and for a bucket whatever gcsfs raises; with `ignore_errors` it removes what it can.
    """
    if isinstance(folder, pathlib.Path):
        shutil.rmtree(folder, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(Exception) if ignore_errors else contextlib.nullcontext():
        folder.rmtree(missing_ok=True)


def move(folder: StoragePath, target: StoragePath) -> None:
    """Renames a folder. In a bucket every object is copied and then removed."""
    if isinstance(folder, pathlib.Path):
        folder.rename(target)
        return
    (store, root), (_, target_root) = _store(folder), _store(target)
    for name in files(folder):
        store.cp_file(f"{root}/{name}", f"{target_root}/{name}")
    remove(folder)


def upload_model(folder: pathlib.Path, target: str | os.PathLike[str]) -> None:
    """Copies the files of a model's folder to a place in a bucket, config.json last. Raises RunFailed if that fails."""
    store, root = _store(target)
    for path in sorted(folder.iterdir(), key=_config_last):
        try:
            _upload(store, path, f"{root.rstrip('/')}/{path.name}")
        except Exception as error:  # gcsfs raises errors of HTTP, of credentials and of the system
            raise _upload_failed(f"{target}/{path.name}", error) from error


def _store(path: str | os.PathLike[str]) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system that holds a path, and the path's name there."""
    # Listings are not cached: other processes write to the bucket, and TensorStore does so without gcsfs. The setting
    # also holds for Orbax's paths, which use the same file system.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        return fsspec.core.url_to_fs(os.fspath(path), finalize_on_close=True)  # as epath opens it: the same object
    except ImportError as error:
        raise UserError(f"{path}: needs gcsfs: pip install 'care-jax[gcs]' ({error})") from None


def _upload(store: fsspec.AbstractFileSystem, path: pathlib.Path, name: str) -> None:
    if path.suffix == ".safetensors":
        store.put_file(str(path), name)  # in pieces: the file may be larger than memory
    else:
        store.pipe_file(name, path.read_bytes())  # read at once: the file may grow meanwhile


def _upload_failed(url: object, error: Exception) -> RunFailed:
    return RunFailed(f"{url}: could not be written: {_short(error)}")


def _config_last(path: pathlib.Path) -> tuple[bool, pathlib.Path]:
    """Sorts config.json to the end: a model's folder that holds it is complete."""
    return path.name == "config.json", path


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# ---- A local folder and its copy in a bucket


class Mirror:
    """While entered, a thread uploads what changes in a local folder.

    One process of several uploads; the others upload only the profiler's traces of their own devices.
    """

    def __init__(self, url: str, folder: pathlib.Path):
        self.home = epath.Path(url.rstrip("/"))
        self._folder = folder
        self._uploaded: dict[str, tuple[int, int, int]] = {}  # the stamp of each file when it was copied
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._upload_repeatedly, daemon=True)
        self._store, self._root = _store(self.home)

    def pull(self) -> None:
        """Empties the local folder and downloads what a resumed run reads. Raises UserError if that fails."""
        clear_folder(self._folder)
        try:
            for entry in self._store.ls(self._root, detail=True) if self._store.exists(self._root) else ():
                name = entry["name"].removeprefix(f"{self._root}/")
                if name not in _UPLOAD_ONLY:
                    for file in self._store.find(entry["name"]) if entry["type"] == "directory" else [entry["name"]]:
                        self._download(file.removeprefix(f"{self._root}/"))
        except Exception as error:
            raise UserError(f"{self.home}: cannot be read: {_short(error)}") from error

    def _download(self, name: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._store.cat_file(f"{self._root}/{name}"))
        self._uploaded[name] = _stamp(path)

    def push(self, *, export: bool = False) -> None:
        """Uploads what has changed; with `export` the exported model too, its config.json last."""
        with self._lock:
            for path in sorted(self._files(export), key=_config_last):
                name = path.relative_to(self._folder).as_posix()
                try:
                    stamp = _stamp(path)
                    if self._uploaded.get(name) != stamp:
                        _upload(self._store, path, f"{self._root}/{name}")
                        self._uploaded[name] = stamp
                except Exception as error:
                    if path.exists():  # otherwise it was replaced or removed just now
                        raise _upload_failed(f"{self.home}/{name}", error) from error

    def _files(self, export: bool) -> Iterator[pathlib.Path]:
        for path in self._folder.rglob("*"):
            parts = path.relative_to(self._folder).parts
            unfinished = any(part.startswith(".") for part in parts) or path.suffix in (".part", ".partial")
            mine = is_writer() or parts[0] == "profile"
            if mine and not unfinished and parts[0] != "wandb" and (export or parts[0] != "export") and path.is_file():
                yield path

    def _upload_repeatedly(self) -> None:
        pause, warned = _UPLOAD_SECONDS, False
        while not self._closed.wait(pause):
            began = time.monotonic()
            try:
                self.push()
                warned = False
            except RunFailed as error:
                if not warned:
                    say(f"warning: {error}; it will be tried again")
                warned = True
            pause = max(_UPLOAD_SECONDS, 20 * (time.monotonic() - began))

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        try:
            self.push()
        except RunFailed as error:
            if kind is None:
                raise
            say(f"warning: {error}; the files that are missing there are in {self._folder}")


def clear_folder(folder: pathlib.Path) -> None:
    """Removes everything in a folder but the run's lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _stamp(path: pathlib.Path) -> tuple[int, int, int]:
    """Returns what changes when a file is written or replaced: size, time and inode."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
