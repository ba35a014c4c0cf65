"""Text files that are never seen half written, JSON lines, Markdown tables."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from care_jax.errors import UserError

JsonObject: TypeAlias = dict[str, Any]  # one JSON object: what json.loads returns for {...}


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file aside and renames it into place, so that it is never seen half written."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, and an empty line after it."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows), ""]


def write_lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, written aside and renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(dump_line(row) for row in rows))


def dump_line(row: Mapping[str, Any]) -> str:
    """One JSON line; half a surrogate pair, which is no UTF-8, is escaped."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(row, default=str)
    return text + "\n"


def read_lines(path: pathlib.Path) -> list[JsonObject]:
    """The complete lines of a JSON lines file whose last line a kill may have cut; none where there is no file."""
    lines: list[JsonObject] = []
    for text in path.read_text().split("\n")[:-1] if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


@contextlib.contextmanager
def writing(key: str, path: pathlib.Path | str) -> Iterator[None]:
    """While entered, an OSError becomes a UserError that names the option or key and the path that it gave."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}: cannot write {path}: {error.strerror or error}") from None
