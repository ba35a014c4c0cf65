"""How a process stops: SIGTERM, Ctrl-C and a cloud's notice let it finish and save what it is doing.

`StopSignal` is for training and other uses of a model; `interruptible` is for commands that need no jax.

Job managers and clouds send SIGTERM when they take a machine away (Kubernetes and so GKE, SLURM, a virtual machine that
shuts down). On Google Cloud some jobs get none, for instance those of a login shell, so the metadata server is asked
too: `instance/preempted` becomes TRUE about 30 s before a spot machine, also a TPU machine, is taken away
(cloud.google.com/compute/docs/instances/create-use-spot, cloud.google.com/compute/docs/metadata).
"""

import contextlib
import dataclasses
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
from typing import TypeAlias

from care_jax.errors import ENDED_BY_USER, INTERRUPTED

_RESUME_HINT = "the same command resumes from what is saved"
_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")  # the firmware's name of the machine
_PREEMPTED = "computeMetadata/v1/instance/preempted"
_FLAVOR = {"Metadata-Flavor": "Google"}  # a header of the request and of the response: no other server sends it
_WAIT_SECONDS = 60  # the server responds when the value changes, and at the latest after this time
_MAX_FAILURES = 6  # in a row

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None  # of a signal


class Interrupted(Exception):
    """A signal stopped the run. The same command resumes from what is saved, as the message says (exit status 75)."""


class StopSignal:
    """Receives, while entered, SIGTERM and SIGINT (in the main thread only) and the notice of Google Cloud.

    A thread reads the signals from the pipe to which the interpreter writes them, so that a second Ctrl-C works while
    the main thread waits for a device or a compiler. All processes of a run stop at the same step.

    requested: whether all processes know that one of them received a signal. received_at: when this one did
    (time.monotonic), or None.
    """

    def __init__(self, grace_seconds: float | None = None, resume_hint: Callable[[], str] = lambda: _RESUME_HINT):
        """grace_seconds: after this time the process exits without a save, with exit status 75. resume_hint: returns a
        sentence that then says from where the run resumes.
        """
        from care_jax.distributed import Agreement  # loads jax, which `interruptible` does not need

        self.requested = False
        self.received_at: float | None = None
        self._grace_seconds, self._resume_hint = grace_seconds, resume_hint
        self._duration = ""  # of the stop, as the message says it
        self._agreement = Agreement()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._deadline: threading.Timer | None = None
        self._previous_handlers: dict[int, _Handler] = {}
        self._previous_wakeup = -1
        self._pipe: tuple[int, int] | None = None

    def poll(self, due: bool = False) -> bool:
        """Updates `requested`, and returns whether `due` is true in some process: one exchange serves both. All
        processes call it equally often. If there are several, they learn one call later what one of them knows.
        """
        stop, due_anywhere = self._agreement.any(self.received_at is not None, due)
        self.requested |= stop
        return due_anywhere

    def check(self, where: str) -> None:
        """Raises Interrupted if a stop was requested. For work whose result is not saved, such as an evaluation."""
        self.poll()
        if self.requested:
            raise Interrupted(f"stopped {where}: {_RESUME_HINT}")

    def estimate_stop(self, step_seconds: float, save_seconds: float) -> None:
        """Sets the duration that the message announces: of the steps under way and of a save (0 before the first)."""
        if save_seconds:
            parts = f"steps under way {step_seconds:.0f} s, a save {save_seconds:.0f} s"
            self._duration = f", in about {step_seconds + save_seconds:.0f} s ({parts})"
        else:
            self._duration = f", in about {step_seconds:.0f} s and the time of the first save"

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)  # set_wakeup_fd requires it
            self._previous_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._read_signals, args=(self._pipe[0],), daemon=True, name="signals").start()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, lambda *_: None)  # only the pipe gets it
        host = metadata_host()
        if host is not None:
            threading.Thread(target=self._watch_metadata, args=(host,), daemon=True, name="preemption").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with self._lock:
            if self._deadline is not None:
                self._deadline.cancel()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._previous_wakeup)
            os.close(self._pipe[1])  # ends the thread that reads

    def _read_signals(self, pipe: int) -> None:
        while data := os.read(pipe, 1):
            number = data[0]
            if number == signal.SIGINT and self.received_at is not None:
                # Nothing is left half written: checkpoints, caches and exports appear by renaming.
                _exit_now(f"ended at once; {_RESUME_HINT}", ENDED_BY_USER)
            if number in (signal.SIGINT, signal.SIGTERM):
                self._request_stop("stopping")
        os.close(pipe)

    def _watch_metadata(self, host: str) -> None:
        if wait_for_preemption(host, self._closed):
            self._request_stop("this machine is to be taken away, stopping")

    def _request_stop(self, reason: str) -> None:
        with self._lock:
            if self.received_at is not None or self._closed.is_set():
                return
            self.received_at = time.monotonic()
            limit = ""
            if self._grace_seconds is not None:
                limit = f"; without a save if that takes more than {self._grace_seconds:g} s (checkpoint.grace_seconds)"
                self._deadline = threading.Timer(self._grace_seconds, self._exit_without_save)
                self._deadline.daemon = True
                self._deadline.start()
            saving = f"the running step will be finished and saved{self._duration}{limit}"
            _print_now(f"{reason}: {saving}; Ctrl-C (again) ends at once")

    def _exit_without_save(self) -> None:
        seconds = f"{self._grace_seconds:g} s after the signal (checkpoint.grace_seconds)"
        _exit_now(f"left without a save {seconds}: {self._resume_hint()}", INTERRUPTED)


@dataclasses.dataclass
class ExitStatus:
    """The exit status of what ran in `interruptible`: 0, or 75 after a signal."""

    value: int = 0


@contextlib.contextmanager
def interruptible() -> Iterator[ExitStatus]:
    """While entered, SIGTERM raises KeyboardInterrupt as Ctrl-C does. At the end a KeyboardInterrupt is caught, and
    sets the status that is yielded.
    """
    status = ExitStatus()

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    previous_handler = signal.signal(signal.SIGTERM, interrupt) if in_main_thread else None
    try:
        yield status
    except KeyboardInterrupt:
        print(f"care-jax: stopped: {_RESUME_HINT}", file=sys.stderr)
        status.value = INTERRUPTED
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous_handler)


def metadata_host() -> str | None:
    """Returns the host of the metadata server on a machine of Google's; elsewhere None, and no request is sent.

    GCE_METADATA_HOST names another host, and NO_GCE_CHECK=true turns this off, as in Google's own libraries.
    """
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return None
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    try:
        product = _PRODUCT.read_text(encoding="utf-8").strip()
    except OSError:  # no such firmware, so not a machine of Google's
        return None
    return "metadata.google.internal" if product in ("Google Compute Engine", "Google") else None


def wait_for_preemption(host: str, closed: threading.Event, pause: float = 1.0) -> bool:
    """Returns True when the machine is to be taken away; False if `closed` is set before, or after too many failures.

    pause: seconds between two requests; doubled by each failure in a row.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer for its own machine
    url = f"http://{host}/{_PREEMPTED}"
    etag, failures = "0", 0
    while not closed.is_set():
        query = f"wait_for_change=true&timeout_sec={_WAIT_SECONDS}&last_etag={etag}"
        try:
            request = urllib.request.Request(f"{url}?{query}", headers=_FLAVOR)
            with opener.open(request, timeout=_WAIT_SECONDS + 10) as response:
                if response.headers.get("Metadata-Flavor") != "Google":
                    raise OSError("not a metadata server")
                value, etag, failures = response.read(16).strip(), response.headers.get("ETag", "0"), 0
            if value == b"TRUE":
                return True
        except (OSError, http.client.HTTPException) as error:
            failures += 1
            if failures == _MAX_FAILURES:
                from care_jax.distributed import say

                say(f"warning: {url} fails ({error}); now only SIGTERM announces that this machine is taken away")
                return False
        closed.wait(pause * 2**failures)
    return False


def _print_now(text: str) -> None:
    """Writes to stderr without Python's buffer, which the main thread may be using."""
    os.write(2, f"\ncare-jax: {text}\n".encode())


def _exit_now(text: str, status: int) -> None:
    """Ends the process from any thread, whatever the others wait for."""
    _print_now(text)
    os._exit(status)
