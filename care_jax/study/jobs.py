"""Runs commands in child processes, several at once. A signal is sent on to all of them, so that they save and end."""

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
from care_jax.stopping import Interrupted


@dataclasses.dataclass(frozen=True)
class Command:
    """arguments: arguments of `care-jax`. log: the file that receives its stdout and stderr."""

    name: str
    arguments: tuple[str, ...]
    log: pathlib.Path


def run_all(commands: Sequence[Command], jobs: int, cache: pathlib.Path) -> dict[str, int]:
    """Runs at most `jobs` commands at once and returns each one's exit status by name.

    cache: a folder of compiled programs that the children share. Raises Interrupted after a signal, when every child
    has saved and ended.
    """
    waiting = list(commands)
    running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
    status: dict[str, int] = {}
    announced: set[str] = set()
    stop = False

    def stop_children(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = True
        for child, *_ in running.values():
            child.send_signal(signal.SIGTERM)

    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
    previous = {number: signal.signal(number, stop_children) for number in numbers}
    try:
        while (waiting and not stop) or running:
            while waiting and len(running) < jobs and not stop:
                command = waiting[0]
                command.log.parent.mkdir(parents=True, exist_ok=True)
                log = open(command.log, "ab")  # noqa: SIM115  # closed when the child ends
                if not _is_free(log):
                    log.close()
                    if command.name not in announced:
                        print(f"{command.name}: waiting for a stopped study's process to save", file=sys.stderr)
                        announced.add(command.name)
                    break
                waiting.pop(0)
                print(f"[{len(status) + len(running) + 1}/{len(commands)}] {command.name}", file=sys.stderr, flush=True)
                running[command.name] = (_start(command, log, cache), log)
            time.sleep(0.05)
            for name, (child, its_log) in list(running.items()):
                code = child.poll()
                if code is not None:
                    its_log.close()
                    del running[name]
                    status[name] = code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stop or INTERRUPTED in status.values():
        raise Interrupted("stopped")
    return status


def tail(path: pathlib.Path, lines: int = 12) -> str:
    """Returns the last lines of a log."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _start(command: Command, log: IO[bytes], cache: pathlib.Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "care_jax", *command.arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ},
        start_new_session=True,  # Ctrl-C reaches it once, through the parent's handler
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def _die_with_parent() -> None:
    """Runs in a child on Linux: it receives SIGTERM when its parent is killed, finishes its step, saves and ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _is_free(log: IO[bytes]) -> bool:
    """Whether no child of a killed study is still running this command, and so writing this log.

    The lock belongs to the open file, which is the child's stdout, so it is released when the child ends.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)  # a file system without locks
    return True
