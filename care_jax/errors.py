"""The errors that the command line prints alone, what a user gave wrong and leakage; and its exit statuses."""

# What the command line exits with, beside 0.
FAILED, MISTAKE, LEAKAGE, INTERRUPTED, ENDED_BY_USER = 1, 2, 3, 75, 130


class UserError(ValueError):
    """A mistake in what the user gave: a file, a row, a key. The command line prints it alone and exits with 2.

    The message names the file, row or key, what was found, and what is expected.
    """


class Leakage(ValueError):
    """Training questions stand in the evaluation set. The command line prints it alone and exits with 3."""


def nearest(name: str, valid: "list[str] | tuple[str, ...]") -> str:
    """' (did you mean X?)' for the valid name closest to `name`, or '' where none is close."""
    import difflib

    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
