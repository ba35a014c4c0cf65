"""Exit statuses, and the errors that the command line prints as one message without a traceback."""

import difflib
from collections.abc import Sequence

# Exit statuses of the command line, besides 0.
FAILED, MISTAKE, LEAKAGE, INTERRUPTED, ENDED_BY_USER = 1, 2, 3, 75, 130


class UserError(ValueError):
    """A mistake in a file, a row or a key that the user gave. The command line exits with status 2.

    The message names the file, row or key, what was found, and what was expected.
    """


class Leakage(ValueError):
    """Training questions that are also in the evaluation set. The command line exits with status 3."""


def nearest(name: str, valid: Sequence[str]) -> str:
    """Returns ' (did you mean X?)' for the valid name closest to `name`, or '' if none is close."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
