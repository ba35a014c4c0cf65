"""How a run ends where neither the user's configuration nor a signal ends it: one clear message, exit status 1."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator

import jax
from safetensors import SafetensorError

from care_jax.errors import UserError


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and from where the same command goes on."""


class Diverged(RunFailed):
    """Too many updates in a row had a non-finite loss or gradient."""


class ProcessLost(RunFailed):
    """Another process of the run is gone, so that nothing which all of them do can come to its end."""


# What the collectives and the coordination service say of a process that does not answer.
_GONE = ("Gloo", "heartbeat", "Connection reset by peer", "Connection closed by peer", "oordination service")

# What a machine does to files. Any other OSError is a bug and keeps its traceback.
_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTCONN),
}


def machine_error(error: BaseException) -> str | None:
    """What the machine refused ("No space left on device"), where `error` is such a refusal; else None.

    safetensors and TensorStore wrap the system's error in text of their own: there it is told by its number or words.
    """
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"\bcode: (\d+)", str(error))):
        code = int(found[1])
    if code in _MACHINE:
        return os.strerror(code)
    if code is None:
        return next((os.strerror(one) for one in sorted(_MACHINE) if os.strerror(one) in str(error)), None)
    return None


def process_lost(error: BaseException | None) -> bool:
    """Whether `error` is what the death of another process looks like from this one."""
    lost = isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in _GONE)
    return lost and jax.process_count() > 1


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a device's memory did not suffice, found by the compiler or while running."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def explain_failures(folder: object, resume_hint: Callable[[], str]) -> Iterator[None]:
    """A full disk, a lost permission, a failing device or a lost process ends the run with one sentence, not with a
    traceback.

    resume_hint: says from where the run can be taken up.
    """
    try:
        yield
    except UserError:
        raise
    except jax.errors.JaxRuntimeError as error:
        if not process_lost(error):
            raise
        said = str(error).splitlines()[0][:200]
        raise ProcessLost(f"another process of this run is gone ({said}); {resume_hint()}") from error
    except (OSError, SafetensorError, ValueError) as error:
        reason = machine_error(error)
        if reason is None:
            raise
        place = getattr(error, "filename", None) or folder
        raise RunFailed(f"{place}: {reason}; {resume_hint()}") from error
