"""How a run ends if neither the user's configuration nor a signal ends it: one clear message, exit status 1."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator

import jax
from safetensors import SafetensorError

from care_jax.errors import UserError


class RunFailed(RuntimeError):
    """The run cannot continue; the message says why, and from which checkpoint the same command resumes."""


class Diverged(RunFailed):
    """Too many updates in a row had a non-finite loss or gradient."""


class ProcessLost(RunFailed):
    """Another process of the run is gone, so that no collective operation can end."""


# In messages of the collectives and the coordination service about a process that does not answer.
_PROCESS_LOST = ("Gloo", "heartbeat", "Connection reset by peer", "Connection closed by peer", "oordination service")

# Failures of the machine. Any other OSError is a bug and keeps its traceback.
_MACHINE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTCONN),
}


def machine_error(error: BaseException) -> str | None:
    """Returns the system's message ("No space left on device") if `error` is a failure of the machine; else None.

    safetensors and TensorStore wrap the system's error: its number or its words are searched in their text.
    """
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (match := re.search(r"\bcode: (\d+)", str(error))):
        code = int(match[1])
    if code in _MACHINE_ERRORS:
        return os.strerror(code)
    if code is None:
        return next((os.strerror(code) for code in sorted(_MACHINE_ERRORS) if os.strerror(code) in str(error)), None)
    return None


def process_lost(error: BaseException | None) -> bool:
    """Returns whether `error` says that another process died."""
    lost = isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in _PROCESS_LOST)
    return lost and jax.process_count() > 1


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Returns whether a device has too little memory, according to the compiler or the run."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def explain_failures(folder: object, resume_hint: Callable[[], str]) -> Iterator[None]:
    """Turns the error of a full disk, a lost permission or a lost process within the block into RunFailed.

    folder: named in errors that name no file. resume_hint: returns from where the run can resume.
    """
    try:
        yield
    except UserError:
        raise
    except jax.errors.JaxRuntimeError as error:
        if not process_lost(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise ProcessLost(f"another process of this run is gone ({reason}); {resume_hint()}") from error
    except (OSError, SafetensorError, ValueError) as error:
        failure = machine_error(error)
        if failure is None:
            raise
        path = getattr(error, "filename", None) or folder
        raise RunFailed(f"{path}: {failure}; {resume_hint()}") from error
