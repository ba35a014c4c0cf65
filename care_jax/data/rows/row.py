"""One row of an input, all rows of an input, and short descriptions of values for messages."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from care_jax.textfiles import JsonObject


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Takes the place of the value of a row that cannot be read. problem: the reason."""

    problem: str


@dataclass(slots=True)
class Row:
    """One row of the input.

    number_in_file: row number in the file, from 0. number: row number over all files of the input, from 0. line: its
    line in the file, from 1; None if the file has no lines. value: the row as an object; None if it is unreadable.
    problem: why it is unreadable.
    """

    file: str
    number_in_file: int
    number: int
    line: int | None = None
    value: JsonObject | None = None
    problem: str = ""

    @classmethod
    def make(cls, file: str, number_in_file: int, number: int, line: int | None, value: object) -> "Row":
        """Makes a row of any parsed value; anything but an object is unreadable."""
        if isinstance(value, dict):
            return cls(file, number_in_file, number, line, value)
        problem = value.problem if isinstance(value, Unreadable) else f"{_kind(value)}, not an object: {shorten(value)}"
        return cls(file, number_in_file, number, line, None, problem)

    @property
    def place(self) -> str:
        """'file, row 3 (line 4)', for messages."""
        return f"{self.file}, row {self.number_in_file}" + (f" (line {self.line})" if self.line is not None else "")


@dataclass(slots=True)
class Rows:
    """All rows of an input, to be iterated over once.

    source: makes the iterator. hashes: (file, SHA-256) of each file read so far.
    """

    source: Callable[["Rows"], Iterator[Row]]
    hashes: list[tuple[str, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        return self.source(self)


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "null"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "text"),
    ((list, tuple), "a list"),
    (Mapping, "an object"),
)


def _kind(value: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), type(value).__name__)


def shorten(value: object, limit: int = 120) -> str:
    """Returns a value as printable text of at most `limit` characters."""
    text = value[: 2 * limit] if isinstance(value, str) else repr(value)[: 2 * limit]
    text = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(value: object) -> str:
    """Returns kind and value for a message: 'a list: [1, 2]', 'null', 'blank text'."""
    if isinstance(value, str) and not value.strip():
        return "blank text"
    return "null" if value is None else f"{_kind(value)}: {shorten(value)}"
