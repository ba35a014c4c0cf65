"""Where a run directory lies: a folder, or a place in a bucket (gs://BUCKET/...).

To a bucket Orbax and TensorStore write the checkpoints themselves. All else a process writes in a folder of its own on
this machine, and it is copied to the bucket as it changes, each file whole: an object cannot be appended to, its write
is atomic. No lock is held there: two jobs with one output_dir in a bucket are the user's to avoid.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

import fsspec
import jax
from etils import epath

from care_jax import distributed
from care_jax.config import Config
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.models.hf.hub import cache_folder
from care_jax.training.errors import RunFailed
from care_jax.training.run.directory import lock_folder, make_folder

StoragePath: TypeAlias = pathlib.Path | epath.Path

_SECONDS = 30.0  # between two looks at what changed; more where copying takes long
# Copied to the bucket and never back: nothing that a start reads. Orbax alone writes the checkpoints.
_ONE_WAY = frozenset({"checkpoints", "export", "profile", "tensorboard"})
_RANGE, _AT_ONCE = 16 * 2**20, 8  # a file's bytes come in so many pieces of this size at a time


# ---- A path here or in a bucket


def is_remote(path: object) -> bool:
    return str(path).startswith("gs://")


def path_of(path: str | os.PathLike[str]) -> StoragePath:
    """A path of the file system, or of a bucket: what Orbax takes for either."""
    return epath.Path(path) if is_remote(path) else pathlib.Path(path)


def files(folder: StoragePath) -> dict[str, int]:
    """Every file below the folder: its path inside, with /, and its size in bytes."""
    if isinstance(folder, pathlib.Path):
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    store, root = _store(folder)
    return {name.removeprefix(f"{root}/"): one["size"] for name, one in store.find(root, detail=True).items()}


def size(path: StoragePath) -> int | None:
    """Of a file, in bytes; None where there is none."""
    if isinstance(path, pathlib.Path):
        return path.stat().st_size if path.is_file() else None
    return path.stat().length if path.is_file() else None


def sha256(path: StoragePath) -> str:
    if isinstance(path, pathlib.Path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    store, name = _store(path)
    found, length = hashlib.sha256(), store.size(name)
    for first in range(0, length, _RANGE * _AT_ONCE):
        starts = range(first, min(first + _RANGE * _AT_ONCE, length), _RANGE)
        ends = [min(start + _RANGE, length) for start in starts]
        for data in store.cat_ranges([name] * len(starts), list(starts), ends, on_error="raise"):
            found.update(data)
    return found.hexdigest()


def remove(folder: StoragePath, *, ignore_errors: bool = False) -> None:
    """The folder and all in it. Raises OSError where that cannot be, of a bucket whatever gcsfs does; with
    `ignore_errors` what can be removed is.
    """
    if isinstance(folder, pathlib.Path):
        shutil.rmtree(folder, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(Exception) if ignore_errors else contextlib.nullcontext():
        folder.rmtree(missing_ok=True)


def move(folder: StoragePath, target: StoragePath) -> None:
    """Gives a folder another name. In a bucket every object is copied there and then removed."""
    if isinstance(folder, pathlib.Path):
        folder.rename(target)
        return
    (store, root), (_, to) = _store(folder), _store(target)
    for name in files(folder):
        store.cp_file(f"{root}/{name}", f"{to}/{name}")
    remove(folder)


def _store(path: str | os.PathLike[str]) -> tuple[Any, str]:
    # Other processes write there, and TensorStore does without gcsfs: what a listing said once may be false now. This
    # holds for Orbax's paths too, which are of the same kind.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        return fsspec.core.url_to_fs(os.fspath(path), finalize_on_close=True)  # as epath opens it: the same object
    except ImportError as error:
        raise UserError(f"{path}: needs gcsfs: pip install 'care-jax[gcs]' ({error})") from None


# ---- The run directory


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """folder: where this process reads and writes the run's files. home: where they are found when it is over, and
    where the checkpoints are; the same, but for a bucket.
    """

    folder: pathlib.Path
    home: StoragePath
    mirror: "Mirror | None" = None

    @property
    def exported(self) -> bool:
        export = self.home / "export"
        return export.exists() if self.mirror is None else (export / "config.json").exists()

    def keep(self, *, export: bool = False) -> None:
        """What was written is at home when this returns; with `export` the exported model too.

        Raises RunFailed where the bucket does not take it.
        """
        if self.mirror is not None:
            self.mirror.push(export=export)


@contextlib.contextmanager
def run_directory(config: Config) -> Iterator[RunDirectory]:
    """The run directory of a configuration, made where it is not there, and this run's alone while entered.

    Raises UserError where it cannot be read or written in, or is in use.
    """
    where = config.output_dir
    if not is_remote(where):
        if found := re.match(r"(\w+):/", where):
            raise UserError(f"output_dir: found {where}, expected a folder or gs://BUCKET/...: {found[1]} is not known")
        folder = make_folder(config)
        with lock_folder(folder):
            yield RunDirectory(folder, folder)
        return
    with copied(where, write=True) as place:
        yield place


@contextlib.contextmanager
def copied(where: str, *, write: bool) -> Iterator[RunDirectory]:
    """A run directory in a bucket, its files copied into a folder of this process; with `write` what changes there is
    copied back, at the latest when this is left.
    """
    if not write:
        with tempfile.TemporaryDirectory(prefix="care_jax-") as name:
            mirror = Mirror(where, pathlib.Path(name))
            mirror.pull()
            yield RunDirectory(pathlib.Path(name), mirror.home)
        return
    folder = _here(where)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        mirror = Mirror(where, folder)
        mirror.pull()
        distributed.barrier("run directory copied")  # by all, before one of them changes it
        with mirror:
            yield RunDirectory(folder, mirror.home, mirror)
        _empty(folder)


@contextlib.contextmanager
def delivered(where: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A folder to write a model in: `where` itself, or one whose files go to that place in a bucket at the end, by the
    first process.
    """
    if not is_remote(where):
        yield pathlib.Path(where)
        return
    store, root = _store(where)
    with tempfile.TemporaryDirectory(prefix="care_jax-") as name:
        model = pathlib.Path(name) / "model"
        yield model
        for path in sorted(model.iterdir(), key=_config_last) if is_writer() else ():
            try:
                _put(store, path, f"{root.rstrip('/')}/{path.name}")
            except Exception as error:
                raise RunFailed(f"{where}/{path.name}: could not be written: {_short(error)}") from error
        distributed.barrier("model delivered")


def _here(where: str) -> pathlib.Path:
    """The folder of this process for a place in a bucket: always the same, so that no second one is left behind."""
    name = hashlib.sha256(where.rstrip("/").encode()).hexdigest()[:16]
    return cache_folder() / "runs" / f"{name}-{jax.process_index()}"


def _empty(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


class Mirror:
    """Copies a folder of this process to a bucket while entered, beside the run. One process of several copies; the
    others the traces of their own devices alone.
    """

    def __init__(self, url: str, folder: pathlib.Path):
        self.home = epath.Path(url.rstrip("/"))
        self._folder = folder
        self._known: dict[str, tuple[int, int, int]] = {}  # the files as they were when they were copied
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._store, self._root = _store(self.home)

    def pull(self) -> None:
        """Empties the folder, and fills it with what the bucket holds and a start reads. Raises UserError."""
        _empty(self._folder)
        try:
            for entry in self._store.ls(self._root, detail=True) if self._store.exists(self._root) else ():
                name = entry["name"].removeprefix(f"{self._root}/")
                if name not in _ONE_WAY:
                    for file in self._store.find(entry["name"]) if entry["type"] == "directory" else [entry["name"]]:
                        self._fetch(file.removeprefix(f"{self._root}/"))
        except Exception as error:  # of HTTP, of credentials, of the system: gcsfs lets all kinds through
            raise UserError(f"{self.home}: cannot be read: {_short(error)}") from error

    def _fetch(self, name: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._store.cat_file(f"{self._root}/{name}"))
        self._known[name] = _stamp(path)

    def push(self, *, export: bool = False) -> None:
        """Copies what has changed; config.json of the export last, so that an export with one is whole."""
        with self._lock:
            for path in sorted(self._files(export), key=_config_last):
                name = path.relative_to(self._folder).as_posix()
                try:
                    stamp = _stamp(path)
                    if self._known.get(name) != stamp:
                        _put(self._store, path, f"{self._root}/{name}")
                        self._known[name] = stamp
                except Exception as error:
                    if path.exists():  # else it was replaced or removed just now
                        raise RunFailed(f"{self.home}/{name}: could not be written: {_short(error)}") from error

    def _files(self, export: bool) -> Iterator[pathlib.Path]:
        for path in self._folder.rglob("*"):
            parts = path.relative_to(self._folder).parts
            unfinished = any(part.startswith(".") for part in parts) or path.suffix in (".part", ".partial")
            own = is_writer() or parts[0] == "profile"
            if own and not unfinished and parts[0] != "wandb" and (export or parts[0] != "export") and path.is_file():
                yield path

    def _watch(self) -> None:
        pause, said = _SECONDS, ""
        while not self._over.wait(pause):
            began = time.monotonic()
            try:
                self.push()
                said = ""
            except RunFailed as error:
                if not said:
                    say(f"warning: {error}; tried again")
                said = str(error)
            pause = max(_SECONDS, 20 * (time.monotonic() - began))

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        try:
            self.push()
        except RunFailed as error:
            if kind is None:
                raise
            say(f"warning: {error}; what is not there is in {self._folder}")


def _put(store: Any, path: pathlib.Path, name: str) -> None:
    if path.suffix == ".safetensors":
        store.put_file(str(path), name)  # in pieces: it may be larger than memory
    else:
        store.pipe_file(name, path.read_bytes())  # it may grow meanwhile


def _config_last(path: pathlib.Path) -> tuple[bool, pathlib.Path]:
    """A model's folder with a config.json is whole."""
    return path.name == "config.json", path


def _stamp(path: pathlib.Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
