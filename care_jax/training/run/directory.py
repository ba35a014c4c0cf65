"""The folder of a run, and who of several processes writes there."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from care_jax import distributed
from care_jax.config import Config
from care_jax.errors import UserError

_LOCK = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_DYING_SECONDS = 5.0  # a process that was killed holds what it holds until its memory is given back


def make_folder(config: Config) -> pathlib.Path:
    """The run directory, made where it is not there. Raises UserError where it cannot be."""
    folder = pathlib.Path(config.output_dir)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"output_dir: cannot write in {folder}: {error.strerror or error}") from None
    return folder


@contextlib.contextmanager
def lock_folder(folder: pathlib.Path, patience: float = _DYING_SECONDS) -> Iterator[None]:
    """The folder is this run's alone while entered: the writer of its processes holds an advisory lock (POSIX), which
    its death sets free, however it dies. On a file system without locks nothing is held.

    patience: seconds to wait for one that is dying. Raises UserError, in every process, where another run has it.
    """
    file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) if distributed.is_writer() else None
    try:
        owner = None if file is None else _lock(file, patience)
        if distributed.anywhere(owner is not None):
            raise UserError(
                f"output_dir: {folder} is in use: {owner or 'another process'} is running there. "
                "Wait for its end, or choose another output_dir"
            )
        yield
    finally:
        if file is not None:
            os.close(file)


def _lock(file: int, patience: float) -> str | None:
    """None once the lock is this process's, or cannot be had on this file system; else who has it."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            if error.errno not in _HELD:
                raise
            if time.monotonic() > until:
                return os.pread(file, 200, 0).decode(errors="replace") or "another process"
            time.sleep(0.1)
        else:
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
            return None
