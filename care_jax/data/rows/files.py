"""Reads rows from local files (JSON, JSON lines, CSV, TSV, parquet, also gzipped) and folders of them.

An unreadable row is yielded with its problem, so that the reader counts it. A file that cannot be used as a whole
raises a `UserError` that names it.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import pathlib
import re
import sys
import zlib
from collections.abc import Iterator

from care_jax.data.rows import external
from care_jax.data.rows.row import Row, Rows, Unreadable, shorten
from care_jax.errors import UserError
from care_jax.hub import is_hub_id

SAMPLE = pathlib.Path(__file__).parents[1] / "sample"
TOKEN_CACHE = "prepared.json"
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
    b"\x1f\x8b": "gzip data under a name that does not end in .gz",
    b"\x28\xb5\x2f\xfd": "zstandard data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
}
_LIST_KEYS = ("data", "rows", "train", "test", "validation")


def open_rows(
    path: str, split: str | None = None, name: str | None = None, revision: str | None = None, only: str | None = None
) -> Rows:
    """Opens a file, a folder, the packaged `sample`, or a hub id ('owner/dataset', loaded by `datasets`).

    split: the split of a hub dataset; in a folder, a word that file names must hold. name: the configuration of a hub
    dataset; in a folder, as `split`. revision: the revision of a hub dataset. only: a pattern that the paths of a
    folder's files must match.
    """
    location = SAMPLE / "care_sample.jsonl" if path == "sample" else pathlib.Path(path).expanduser()
    if location.is_dir():
        return _open_folder(location, split, name, only)
    if location.exists():
        for key, value in (("split", split), ("name", name), ("revision", revision)):
            if value is not None:
                raise UserError(f"{path} is a file: {key}={value!r} only applies to a folder or a hub dataset")
        return Rows(lambda rows: _read_files([location], rows))
    # If `data/train` is missing but the folder `data` exists, the path is misspelt and not the id of a hub dataset.
    if is_hub_id(path) and not path.endswith((*SUFFIXES, ".gz")) and not location.parent.exists():
        return Rows(lambda rows: external.read_hub_dataset(path, split, name, revision, rows))
    raise UserError(f"no such file or folder: {path}")


def _open_folder(folder: pathlib.Path, split: str | None, name: str | None, only: str | None) -> Rows:
    if (folder / TOKEN_CACHE).exists():
        raise UserError(f"{folder} is a token cache: read it by `reader: prepared`")
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return Rows(lambda rows: external.read_saved_dataset(folder, split))
    if _list_below(folder, "features.json"):
        return Rows(lambda rows: external.read_tfds_rows(folder, split, name))
    files = _data_files(folder, split, name, only)
    return Rows(lambda rows: _read_files(files, rows))


def _list_below(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    try:
        return list(folder.rglob(pattern))
    except OSError as error:  # files were removed while the folder was listed
        raise UserError(f"{folder}: cannot be listed: {error.filename}: {error.strerror}") from None


def _data_files(folder: pathlib.Path, split: str | None, name: str | None, only: str | None) -> list[pathlib.Path]:
    """Returns the data files below a folder, sorted, without hidden ones (.ipynb_checkpoints, .cache, ._name)."""
    files = [
        path
        for path in sorted(_list_below(folder, "*"))
        if path.is_file()
        and path.name.lower().removesuffix(".gz").endswith(SUFFIXES)
        and path.name not in ("dataset_infos.json", "dataset_info.json")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(f"{folder} holds no data files ({', '.join(SUFFIXES)}, also gzipped)")
    selections = [(f"whose name matches {only!r}", only)] if only is not None else []
    for key, word in (("name", name), ("split", split)):
        if word is not None:
            selections.append((f"for {key}={word!r}", rf"(?i)(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])"))
    for what, pattern in selections:
        matching = [path for path in files if re.search(pattern, str(path.relative_to(folder)))]
        if not matching:
            names = ", ".join(str(path.relative_to(folder)) for path in files[:8])
            raise UserError(f"{folder}: no file {what}; there are {names}")
        files = matching
    return files


def _read_files(files: list[pathlib.Path], rows: Rows) -> Iterator[Row]:
    number = 0
    for path in files:
        file = _printable(path)
        for number_in_file, (line, value) in enumerate(_read_file(path, rows)):
            yield Row.make(file, number_in_file, number, line, value)
            number += 1


def _printable(path: pathlib.Path) -> str:
    """Returns the path as text; bytes that are not UTF-8 are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _read_file(path: pathlib.Path, rows: Rows) -> Iterator[tuple[int | None, object]]:
    """Returns an iterator over (line or None, value) of each row."""
    try:
        data = path.read_bytes()
        rows.hashes.append((_printable(path), hashlib.sha256(data).hexdigest()))
        name = path.name.lower()
        if name.endswith(".gz"):
            data, name = gzip.decompress(data), name.removesuffix(".gz")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if name.endswith(".parquet"):
        return _parse_parquet(path, data)
    for magic, kind in _ARCHIVES.items():
        if data.startswith(magic):
            raise UserError(f"{path} is {kind}: unpack it, or compress each file with gzip as NAME.jsonl.gz")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if name.endswith((".csv", ".tsv")):
        return _parse_table(path, data, "\t" if name.endswith(".tsv") else ",")
    if not data.strip():
        raise UserError(f"{path} holds no rows")
    if data.lstrip()[:1] == b"[":
        return _parse_array(path, data)
    if name.endswith(".json") and data.lstrip()[:1] == b"{":
        with contextlib.suppress(ValueError, RecursionError):  # what is not one JSON object is read as JSON lines
            parsed = json.loads(data)
            lists = [parsed[key] for key in _LIST_KEYS if isinstance(parsed.get(key), list)]
            return ((None, value) for value in (lists[0] if len(lists) == 1 else [parsed]))
    return ((line, _parse_line(raw)) for line, raw in enumerate(io.BytesIO(data), start=1) if raw.strip())


def _parse_line(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return Unreadable(f"not JSON: {error.msg} at character {error.pos}: {shorten(raw.decode('utf-8'))}")
    except (ValueError, RecursionError) as error:  # thousands of digits or of nested brackets
        return Unreadable(f"not JSON: {error}")


def _parse_array(path: pathlib.Path, data: bytes) -> Iterator[tuple[None, object]]:
    # Bytes that are not UTF-8 become lone surrogates, so that only the rows that hold them are dropped.
    text = data.decode("utf-8", "surrogateescape")
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: its JSON is nested too deeply") from error
    except ValueError as error:
        position = error.pos if isinstance(error, json.JSONDecodeError) else 0
        if not position:
            raise UserError(f"{path}: not JSON: {error}") from error
        row, line = _position(text, position)
        raise UserError(f"{path}, row {row} (line {line}): not JSON: {error}; the file may be cut off") from error
    if not values:
        raise UserError(f"{path} holds no rows")
    return ((None, value) for value in values)


def _position(text: str, position: int) -> tuple[int, int]:
    """Returns the (row, line) of a position in the text of an array. The row counts the elements that end before it."""
    decoder, row, end = json.JSONDecoder(), 0, text.index("[") + 1
    separator = re.compile(r"[\s,]*")
    while end < position:
        end = separator.match(text, end).end()  # type: ignore[union-attr]  # the pattern matches everywhere
        try:
            _, end = decoder.raw_decode(text, end)
        except (ValueError, RecursionError):
            break
        row += 1
    return row, text.count("\n", 0, position) + 1


def _parse_table(path: pathlib.Path, data: bytes, delimiter: str) -> Iterator[tuple[int, object]]:
    text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise UserError(f"{path} holds no rows")
        if len(set(header)) != len(header):
            raise UserError(f"{path}: the header names a column twice: {', '.join(header)}")
        for cells in reader:
            if len(cells) > len(header):
                yield reader.line_num, Unreadable(f"{len(cells)} cells under a header of {len(header)}")
            elif cells:
                yield reader.line_num, dict(zip(header, cells))
    except csv.Error as error:
        raise UserError(f"{path} (line {reader.line_num}): not CSV: {error}") from error


def _parse_parquet(path: pathlib.Path, data: bytes) -> Iterator[tuple[None, object]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        for batch in file.iter_batches(batch_size=4096):
            for value in batch.to_pylist():
                yield None, value
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not parquet: {error}") from error
