"""Text files that are written aside and renamed into place, JSON files, JSON lines, Markdown tables, progress bars."""

import contextlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from care_jax.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm as ProgressBar
else:
    ProgressBar = object  # imported when a bar is shown

JsonObject: TypeAlias = dict[str, Any]  # one JSON object: what json.loads returns for {...}


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes the text to a temporary file and renames it to `path`, so that nobody reads a partly written file."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: pathlib.Path, value: Mapping[str, object] | Sequence[object], indent: int = 1) -> None:
    """Writes one JSON document by `write_whole`."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def write_lines(path: pathlib.Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes JSON lines by `write_whole`, and makes the folder if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(dump_line(row) for row in rows))


def dump_line(row: Mapping[str, object]) -> str:
    """Returns the row as one JSON line. A lone surrogate, which UTF-8 cannot encode, is escaped."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(row, default=str)
    return text + "\n"


def read_lines(path: pathlib.Path) -> list[JsonObject]:
    """Returns the complete lines of a JSON lines file, up to the first that a kill cut off; [] if there is no file."""
    lines: list[JsonObject] = []
    for text in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def complete_lines(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the complete lines of a file, which is created if need be, and then cuts off an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        size = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            yield line
            size += len(line)
        file.truncate(size)


def parse_lines(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    """Yields (place, value) of every JSON line that is not blank; place is 'PATH (line 3)', for messages.

    Raises UserError for a line that is not JSON.
    """
    with open(path, encoding="utf-8-sig") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            place = f"{path} (line {number})"
            try:
                value = json.loads(text)
            except ValueError as error:
                raise UserError(f"{place}: not JSON: {error}") from None
            yield place, value


@contextlib.contextmanager
def writing(key: str, path: pathlib.Path | str) -> Iterator[None]:
    """Turns an OSError inside the `with` block into a UserError that names the option or key and the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}: cannot write {path}: {error.strerror or error}") from None


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table, followed by an empty line."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows), ""]


def progress_bar(
    total: int, name: str, unit: str, done: int = 0, hidden: bool = False, temporary: bool = False
) -> ProgressBar:
    """Returns a bar on stderr, for `with`; its `update` advances it. done: where it starts.

    temporary: the bar is shown only after 2 s, and removed at the end.
    """
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10  # seconds; a log is not filled with bars
    return tqdm(
        total=total, initial=done, desc=name, unit=unit, disable=hidden, mininterval=interval,
        leave=not temporary, delay=2 if temporary else 0,
    )  # fmt: skip
