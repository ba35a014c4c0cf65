"""A polite end: SIGTERM or Ctrl-C lets the step finish and be saved; a second Ctrl-C ends at once.

SIGTERM is how job managers and clouds announce that a machine is taken away (Kubernetes and so GKE, SLURM, a virtual
machine that shuts down). Signals are read by a thread from the pipe that the interpreter's own handler writes to, so
that a second Ctrl-C is heard while the main thread waits for a device or a compiler. Of several processes all stop at
the same step, whichever was told.
"""

import os
import signal
import threading
import time
from types import FrameType

from care_jax.sharding import Agreement

ENDED_BY_USER = 130


class Interrupted(Exception):
    """A signal asked the run to stop; the state is saved, and the same command goes on from there (exit status 75)."""


class StopSignal:
    """While entered, hears SIGTERM and SIGINT (in the main thread; elsewhere never).

    requested: whether all processes know by now that one was told to stop; heard_at: when this one was (monotonic).
    """

    def __init__(self) -> None:
        self.requested = False
        self.heard_at: float | None = None
        self._agreement = Agreement()
        self._before: dict[int, object] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def poll(self, due: bool = False) -> bool:
        """Renews `requested`; returns whether `due` was true in some process. All processes call it equally often."""
        stop, anywhere = self._agreement.any(self.heard_at is not None, due)
        self.requested |= stop
        return anywhere

    def check(self, where: str) -> None:
        """Raises Interrupted where a signal has asked to stop and no step is under way to be saved."""
        self.poll()
        if self.requested:
            raise Interrupted(f"stopped {where}: the same command goes on from what is saved")

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)  # as set_wakeup_fd asks
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(self._pipe[0],), daemon=True, name="signals").start()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, _nothing)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._pipe[1])  # the thread reads to the end

    def _listen(self, pipe: int) -> None:
        while heard := os.read(pipe, 1):
            if heard[0] == signal.SIGINT and self.heard_at is not None:
                # Checkpoints, caches and exports appear by renaming, so nothing is left half-written.
                os.write(2, b"\ncare-jax: ended at once; the same command goes on from what is saved\n")
                os._exit(ENDED_BY_USER)
            if heard[0] in (signal.SIGINT, signal.SIGTERM) and self.heard_at is None:
                self.heard_at = time.monotonic()
                os.write(2, b"\ncare-jax: stopping: this step is finished and saved; Ctrl-C (again) ends at once\n")
        os.close(pipe)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Makes the interpreter write the signal's number to the pipe, and nothing else happen."""
