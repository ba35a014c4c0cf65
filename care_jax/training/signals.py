"""A polite end: the first SIGTERM or Ctrl-C lets the step finish and be saved, the second ends at once."""

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """A signal asked the run to stop; the state is saved, and the same command goes on from there (exit status 75)."""


class StopSignal:
    """While entered, `requested` turns true at the first SIGTERM or SIGINT (in the main thread; elsewhere never)."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def check(self, where: str) -> None:
        """Raises Interrupted where a signal has asked to stop and no step is under way to be saved."""
        if self.requested:
            raise Interrupted(f"stopped {where}: the same command goes on from what is saved")

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
