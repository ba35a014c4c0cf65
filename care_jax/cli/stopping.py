"""A polite end for commands that wait for others and need no jax: SIGTERM is heard as Ctrl-C is."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from care_jax.errors import INTERRUPTED


class Status:
    """The exit status of what ran within `interruptible`: 0, or 75 after a signal."""

    def __init__(self) -> None:
        self.value = 0


@contextlib.contextmanager
def interruptible() -> Iterator[Status]:
    """What was under way ends by itself and is kept; the status then says to run again."""
    status = Status()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield status
    except KeyboardInterrupt:
        print("care-jax: stopped: the same command goes on from what is saved", file=sys.stderr)
        status.value = INTERRUPTED
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
