"""Commands in child processes, several at once; a signal reaches all of them, and what they saved is gone on from."""

import ctypes
import dataclasses
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from care_jax.errors import INTERRUPTED


@dataclasses.dataclass(frozen=True)
class Command:
    """words: of `care-jax`; log: where its stdout and stderr go."""

    name: str
    words: tuple[str, ...]
    log: pathlib.Path

    @property
    def shown(self) -> str:
        return " ".join(("care-jax", *self.words))


class Stopped(Exception):
    """A signal ended it; the same study goes on from what is saved."""


def _die_with_parent() -> None:
    """On Linux a child gets SIGTERM when its parent is killed: it finishes its step, saves and ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _is_free(log: IO[bytes]) -> bool:
    """Whether no child of a killed study still writes this log, and so into what belongs to its command. The lock is
    the open file's, which a child has as its stdout: it is free once the child has ended.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)  # a file system without locks holds nothing
    return True


def run_all(commands: Sequence[Command], jobs: int, compiled: pathlib.Path) -> dict[str, int]:
    """Exit status by name. compiled: a folder of compiled programs that the children share.

    Raises Stopped after a signal, once every child has saved and ended.
    """
    waiting = list(commands)
    running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
    status: dict[str, int] = {}
    told: set[str] = set()
    stop = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = True
        for child, *_ in running.values():
            child.send_signal(signal.SIGTERM)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    environment = {"JAX_COMPILATION_CACHE_DIR": str(compiled), **os.environ}
    try:
        while (waiting and not stop) or running:
            while waiting and len(running) < jobs and not stop:
                command = waiting[0]
                command.log.parent.mkdir(parents=True, exist_ok=True)
                log = open(command.log, "ab")  # noqa: SIM115  # closed when the child ends
                if not _is_free(log):
                    log.close()
                    if command.name not in told:
                        print(f"{command.name}: a stopped study's process still saves; waiting", file=sys.stderr)
                        told.add(command.name)
                    break
                waiting.pop(0)
                print(f"[{len(status) + len(running) + 1}/{len(commands)}] {command.name}", file=sys.stderr, flush=True)
                child = subprocess.Popen(
                    [sys.executable, "-m", "care_jax", *command.words],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches it once, through `ask`
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
                running[command.name] = (child, log)
            time.sleep(0.05)
            for name, (ended, its_log) in list(running.items()):
                code = ended.poll()
                if code is not None:
                    its_log.close()
                    del running[name]
                    status[name] = code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop or INTERRUPTED in status.values():
        raise Stopped
    return status


def tail(path: pathlib.Path, lines: int = 12) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
