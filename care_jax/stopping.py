"""How a process stops: SIGTERM, Ctrl-C and a cloud's notice let the work under way finish and be saved.

SIGTERM is how job managers and clouds announce that a machine is taken away (Kubernetes and so GKE, SLURM, a virtual
machine that shuts down). A thread reads signals from the pipe that the interpreter's own handler writes to, so that a
second Ctrl-C is heard while the main thread waits for a device or a compiler. Of several processes all stop at the
same step, whichever of them was told.

Google's metadata server: `instance/preempted` turns to TRUE about 30 s before a spot machine, also a TPU machine, is
taken away (cloud.google.com/compute/docs/instances/create-use-spot; cloud.google.com/compute/docs/metadata). Not every
job there gets a SIGTERM: a process of a login shell does not.
"""

import contextlib
import http.client
import os
import pathlib
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from types import FrameType

from care_jax.errors import ENDED_BY_USER, INTERRUPTED


class Interrupted(Exception):
    """A signal asked the run to stop; the state is saved, and the same command goes on from there (exit status 75)."""


class StopSignal:
    """While entered, hears SIGTERM and SIGINT (in the main thread; elsewhere never) and the notice of Google's cloud.

    requested: whether all processes know by now that one was told to stop; received_at: when this one was (monotonic).
    grace_seconds: how long after that the process may live: what has not ended by then is left without a save, with
    exit status 75. resume_hint: says from where the run then goes on.
    """

    def __init__(self, grace_seconds: float | None = None, resume_hint: Callable[[], str] = lambda: _GOES_ON) -> None:
        self.requested = False
        self.received_at: float | None = None
        self._grace, self._resume_hint = grace_seconds, resume_hint
        self._expected = ""
        self._hearing, self._closed = threading.Lock(), threading.Event()
        self._deadline: threading.Timer | None = None
        from care_jax.distributed import Agreement  # loads jax, which `interruptible` does without

        self._agreement = Agreement()
        self._before: dict[int, object] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def poll(self, due: bool = False) -> bool:
        """Renews `requested`; returns whether `due` was true in some process. All processes call it equally often."""
        stop, anywhere = self._agreement.any(self.received_at is not None, due)
        self.requested |= stop
        return anywhere

    def check(self, where: str) -> None:
        """Raises Interrupted where a signal has asked to stop and no step is under way to be saved."""
        self.poll()
        if self.requested:
            raise Interrupted(f"stopped {where}: {_GOES_ON}")

    def estimate_stop(self, step_seconds: float, save_seconds: float) -> None:
        """How long a stop would take: what is under way took so long the last time, and a save (0: none yet)."""
        if save_seconds:
            each = f"steps under way {step_seconds:.0f} s, a save {save_seconds:.0f} s"
            self._expected = f" in about {step_seconds + save_seconds:.0f} s ({each})"
        else:
            self._expected = f" in about {step_seconds:.0f} s and a save, which would be the first of this start"

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)  # as set_wakeup_fd asks
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(self._pipe[0],), daemon=True, name="signals").start()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, _nothing)
        host = metadata_host()
        if host is not None:
            threading.Thread(target=self._watch, args=(host,), daemon=True, name="preemption").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with self._hearing:
            if self._deadline is not None:
                self._deadline.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._pipe[1])  # the thread reads to the end

    def _listen(self, pipe: int) -> None:
        while heard := os.read(pipe, 1):
            if heard[0] == signal.SIGINT and self.received_at is not None:
                # Checkpoints, caches and exports appear by renaming, so nothing is left half-written.
                _leave(f"ended at once; {_GOES_ON}", ENDED_BY_USER)
            if heard[0] in (signal.SIGINT, signal.SIGTERM):
                self._hear("stopping")
        os.close(pipe)

    def _watch(self, host: str) -> None:
        if wait_for_preemption(host, self._closed):
            self._hear("this machine is to be taken away, stopping")

    def _hear(self, what: str) -> None:
        with self._hearing:
            if self.received_at is not None or self._closed.is_set():
                return
            self.received_at = time.monotonic()
            limit = ""
            if self._grace is not None:
                limit = f"; without a save if that takes more than {self._grace:g} s (checkpoint.grace_seconds)"
                self._deadline = threading.Timer(self._grace, self._too_late)
                self._deadline.daemon = True
                self._deadline.start()
            _tell(f"{what}: this step is finished and saved{self._expected}{limit}; Ctrl-C (again) ends at once")

    def _too_late(self) -> None:
        _leave(
            f"left without a save {self._grace:g} s after the signal (checkpoint.grace_seconds): {self._resume_hint()}",
            INTERRUPTED,
        )


_GOES_ON = "the same command goes on from what is saved"


def _tell(text: str) -> None:
    os.write(2, f"\ncare-jax: {text}\n".encode())


def _leave(text: str, status: int) -> None:
    """Ends the process from a thread, whatever the others wait for."""
    _tell(text)
    os._exit(status)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Makes the interpreter write the signal's number to the pipe, and nothing else happen."""


_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")  # what the firmware calls the machine


_FLAVOR = {"Metadata-Flavor": "Google"}  # of the question and of the answer: no other server speaks so


_WAIT_SECONDS = 60  # the server answers at once when the value changes, else after that long


_TRIES = 6


def metadata_host() -> str | None:
    """The metadata server, on a machine of Google's alone; elsewhere None, so that nothing is ever asked.

    GCE_METADATA_HOST names another one, and NO_GCE_CHECK=true asks none, as in Google's own libraries.
    """
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return None
    if named := os.environ.get("GCE_METADATA_HOST"):
        return named
    try:
        product = _PRODUCT.read_text(encoding="utf-8").strip()
    except OSError:  # no such firmware: not Google's
        return None
    return "metadata.google.internal" if product in ("Google Compute Engine", "Google") else None


def wait_for_preemption(host: str, closed: threading.Event, pause: float = 1.0) -> bool:
    """Waits until the machine is to go (True), `closed` is set, or the server fails too often in a row (False).

    pause: seconds between two questions, and before the first retry.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # what a proxy says is of another machine
    etag, failed = "0", 0
    while not closed.is_set():
        url = f"http://{host}/computeMetadata/v1/instance/preempted"
        request = urllib.request.Request(
            f"{url}?wait_for_change=true&timeout_sec={_WAIT_SECONDS}&last_etag={etag}", headers=_FLAVOR
        )
        try:
            with opener.open(request, timeout=_WAIT_SECONDS + 10) as answer:
                if answer.headers.get("Metadata-Flavor") != "Google":
                    raise OSError("not a metadata server")
                value, etag, failed = answer.read(16).strip(), answer.headers.get("ETag", "0"), 0
            if value == b"TRUE":
                return True
        except (OSError, http.client.HTTPException) as error:
            failed += 1
            if failed == _TRIES:
                from care_jax.distributed import say

                say(f"warning: {url} fails ({error}): that this machine is to be taken away is heard as SIGTERM alone")
                return False
        closed.wait(pause * 2**failed)
    return False


class ExitStatus:
    """The exit status of what ran within `interruptible`: 0, or 75 after a signal."""

    def __init__(self) -> None:
        self.value = 0


@contextlib.contextmanager
def interruptible() -> Iterator[ExitStatus]:
    """What was under way ends by itself and is kept; the status then says to run again."""
    status = ExitStatus()

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
