"""The run directory: a folder, or a place in a bucket with a local copy; one run at a time uses it."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import pathlib
import re
import socket
import tempfile
import time
from collections.abc import Iterator

import jax

from care_jax import distributed
from care_jax.config import Config
from care_jax.errors import UserError
from care_jax.models.hf.locate import cache_folder
from care_jax.training.run.bucket import Mirror, StoragePath, clear_folder, is_remote

_LOCK = ".lock"
_LOCKED_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_LOCK_SECONDS = 5.0  # to wait for a lock: a killed process keeps it until its memory is freed


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """folder: where this process reads and writes the run's files. home: where the user finds them, and where the
    checkpoints are; differs from `folder` only for a bucket, to which `mirror` copies the files.
    """

    folder: pathlib.Path
    home: StoragePath
    mirror: Mirror | None = None

    @property
    def has_export(self) -> bool:
        return (self.home / "export" / "config.json").exists()

    def upload(self, *, export: bool = False) -> None:
        """Brings every file written so far to `home`; with `export` the exported model too.

        Raises RunFailed if the bucket refuses a file.
        """
        if self.mirror is not None:
            self.mirror.push(export=export)


@contextlib.contextmanager
def run_directory(config: Config) -> Iterator[RunDirectory]:
    """Yields the run directory of a configuration and makes it if it does not exist; no other run may enter it.

    In a bucket nothing keeps a run on another host out. Raises UserError if the directory cannot be read or written,
    or is in use.
    """
    if is_remote(config.output_dir):
        with _mirrored_directory(config.output_dir) as directory:
            yield directory
        return
    if scheme := re.match(r"(\w+):/", config.output_dir):
        raise UserError(
            f"output_dir: found {config.output_dir}, expected a folder or gs://BUCKET/...: {scheme[1]} is not known"
        )
    folder = pathlib.Path(config.output_dir)
    with writing_in(folder):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        yield RunDirectory(folder, folder)


@contextlib.contextmanager
def _mirrored_directory(url: str) -> Iterator[RunDirectory]:
    """Yields a local copy of a run directory in a bucket; changes are uploaded, at the latest at the end."""
    # The folder's name depends on the URL alone, so that a process that resumes after a kill reuses it.
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder = cache_folder() / "runs" / f"{name}-{jax.process_index()}"
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        mirror = Mirror(url, folder)
        mirror.pull()
        distributed.barrier("run directory copied")  # all processes copy it before one of them changes it
        with mirror:
            yield RunDirectory(folder, mirror.home, mirror)
        clear_folder(folder)


@contextlib.contextmanager
def read_only_directory(run: str | os.PathLike[str]) -> Iterator[RunDirectory]:
    """Yields an existing run directory to read; of one in a bucket the files are copied, without the checkpoints."""
    if not is_remote(run):
        yield RunDirectory(pathlib.Path(run), pathlib.Path(run))
        return
    with tempfile.TemporaryDirectory(prefix="care_jax-") as name:
        mirror = Mirror(str(run), pathlib.Path(name))
        mirror.pull()
        yield RunDirectory(pathlib.Path(name), mirror.home)


@contextlib.contextmanager
def writing_in(folder: object) -> Iterator[None]:
    """Turns an OSError into a UserError that names `output_dir`, except for a full disk, which is no user's mistake."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"output_dir: cannot write in {folder}: {error.strerror or error}") from None


@contextlib.contextmanager
def lock_folder(folder: pathlib.Path, patience: float = _LOCK_SECONDS) -> Iterator[None]:
    """Holds an advisory lock (POSIX) on the folder, in the first process; the system frees it however the process dies.

    On a file system without locks it does nothing. patience: seconds to wait for another process that is dying.
    Raises UserError, in every process, if another run holds the lock.
    """
    file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) if distributed.is_writer() else None
    try:
        owner = None if file is None else _lock(file, patience)
        if distributed.anywhere(owner is not None):
            raise UserError(
                f"output_dir: {folder} is in use: {owner or 'another process'} is running there. "
                "Wait until it ends, or choose another output_dir"
            )
        yield
    finally:
        if file is not None:
            os.close(file)


def _lock(file: int, patience: float) -> str | None:
    """Locks the file; returns None, also if the file system has no locks, or the process that holds the lock."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            if error.errno not in _LOCKED_BY_ANOTHER:
                raise
            if time.monotonic() > deadline:
                return os.pread(file, 200, 0).decode(errors="replace") or "another process"
            time.sleep(0.1)
        else:
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
            return None
