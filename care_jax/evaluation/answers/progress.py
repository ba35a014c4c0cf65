"""A progress bar on stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def progress_bar(total: int, what: str, done: int = 0, hidden: bool = False) -> Iterator[Callable[..., object]]:
    """Shows a bar on stderr, which starts at `done`; yields the function that advances it. what: a plural noun."""
    interval = 0.2 if sys.stderr.isatty() else 10  # seconds; a log is not filled with bars
    unit = what.removesuffix("s")
    with tqdm(total=total, initial=done, desc=what, unit=unit, mininterval=interval, disable=hidden) as bar:
        yield bar.update
