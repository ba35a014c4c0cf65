"""Rows out of files: JSON, JSON lines, CSV, TSV, parquet (also gzipped), folders of them, saved datasets, hub ids.

A row that cannot be read is handed on as such, with what is wrong, so that the reader counts it. What makes the whole
file unusable is a `UserError` that names the file.
"""

import csv
import gzip
import hashlib
import io
import json
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(slots=True)
class Row:
    """One row of the input. row: from 0, within its file; line: from 1, where the file has lines.

    value: the row's fields; None where it is unreadable, and `problem` then says why.
    """

    file: str
    row: int
    number: int
    line: int | None = None
    value: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def place(self) -> str:
        """'file, row 3 (line 4)', for messages."""
        return f"{self.file}, row {self.row}" + (f" (line {self.line})" if self.line is not None else "")


@dataclass(slots=True)
class Rows:
    """All rows of an input, once; `hashes` fills with (file, SHA-256) as files are read, `count` with rows."""

    source: Callable[["Rows"], Iterator[Row]]
    hashes: list[tuple[str, str]] = field(default_factory=list)
    count: int = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.source(self):
            self.count += 1
            yield row


def open_rows(
    path: str, split: str | None = None, name: str | None = None, revision: str | None = None, only: str | None = None
) -> Rows:
    """The rows of a file, a folder, the packaged `sample`, or a hub id ('owner/dataset', through `datasets`).

    split: of a hub dataset, or the files of a folder whose name holds it as a word. name, revision: of a hub dataset.
    only: a pattern; of a folder, the files whose names it is found in.
    """
    place = SAMPLE / "care_sample.jsonl" if path == "sample" else pathlib.Path(path).expanduser()
    if place.is_dir():
        if (place / TOKEN_CACHE).exists():
            raise UserError(f"{path} is a token cache: read it by `reader: prepared`")
        if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
            return Rows(lambda rows: _saved_dataset(place, split))
        if _below(place, "features.json"):
            return Rows(lambda rows: _tfds(place, split, name))
        files = _folder(place, split, name, only)
        return Rows(lambda rows: _files(files, rows))
    if place.exists():
        for key, value in (("split", split), ("name", name), ("revision", revision)):
            if value is not None:
                raise UserError(f"{path} is a file: {key}={value!r} only applies to a folder or a hub dataset")
        return Rows(lambda rows: _files([place], rows))
    # 'data/train' with a folder `data` here is a slip in a path, not somebody's dataset.
    if is_hub_id(path) and not path.endswith((*SUFFIXES, ".gz")) and not place.parent.exists():
        return Rows(lambda rows: _hub(path, split, name, revision, rows))
    raise UserError(f"no such file or folder: {path}")


def _below(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    try:
        return list(folder.rglob(pattern))
    except OSError as error:  # what is below changes while it is listed
        raise UserError(f"{folder}: cannot be listed: {error.filename}: {error.strerror}") from None


def _folder(folder: pathlib.Path, split: str | None, name: str | None, only: str | None) -> list[pathlib.Path]:
    files = sorted(
        p for p in _below(folder, "*") if p.is_file() and p.name.lower().removesuffix(".gz").endswith(SUFFIXES)
    )
    # Hidden ones are others' copies and records (.ipynb_checkpoints, .cache, ._name).
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    files = [p for p in files if p.name not in ("dataset_infos.json", "dataset_info.json")]
    if not files:
        raise UserError(f"{folder} holds no data files ({', '.join(SUFFIXES)}, also gzipped)")
    if only is not None:
        found = ", ".join(p.name for p in files[:8])
        files = [p for p in files if re.search(only, p.name)]
        if not files:
            raise UserError(f"{folder}: no file whose name matches {only!r}; there are {found}")
    for key, word in (("name", name), ("split", split)):
        if word is not None:
            pattern = re.compile(rf"(?<![a-z0-9]){re.escape(word.lower())}(?![a-z0-9])")
            chosen = [p for p in files if pattern.search(str(p.relative_to(folder)).lower())]
            if not chosen:
                found = ", ".join(str(p.relative_to(folder)) for p in files[:8])
                raise UserError(f"{folder}: no file for {key}={word!r}; there are {found}")
            files = chosen
    return files


def _files(files: list[pathlib.Path], rows: Rows) -> Iterator[Row]:
    number = 0
    for path in files:
        file = _printable(path)
        for row, (line, value) in enumerate(_file(path, rows)):
            yield _row(file, row, number, line, value)
            number += 1


def _printable(path: pathlib.Path) -> str:
    """The path as text that every report can hold: bytes of a name that are not UTF-8 are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _row(file: str, row: int, number: int, line: int | None, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(file, row, number, line, value)
    if isinstance(value, _Unreadable):
        return Row(file, row, number, line, None, value.problem)
    return Row(file, row, number, line, None, f"{_kind(value)}, not an object: {shorten(value)}")


@dataclass(frozen=True, slots=True)
class _Unreadable:
    problem: str


def _file(path: pathlib.Path, rows: Rows) -> Iterator[tuple[int | None, Any]]:
    """(line or None, value) of each row."""
    try:
        data = path.read_bytes()
        rows.hashes.append((_printable(path), hashlib.sha256(data).hexdigest()))
        name = path.name.lower()
        if name.endswith(".gz"):
            data, name = gzip.decompress(data), name.removesuffix(".gz")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if name.endswith(".parquet"):
        return _parquet(path, data)
    for begins, kind in _ARCHIVES.items():
        if data.startswith(begins):
            raise UserError(f"{path} is {kind}: unpack it, or compress each file by gzip as NAME.jsonl.gz")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if name.endswith((".csv", ".tsv")):
        return _table(path, data, "\t" if name.endswith(".tsv") else ",")
    if not data.strip():
        raise UserError(f"{path} holds no rows")
    if data.lstrip()[:1] == b"[":
        return _array(path, data)
    if name.endswith(".json") and data.lstrip()[:1] == b"{":
        whole = _whole(data)
        if isinstance(whole, Mapping):
            lists = [whole[key] for key in _LIST_KEYS if isinstance(whole.get(key), list)]
            return ((None, value) for value in (lists[0] if len(lists) == 1 else [whole]))
    return _lines(data)


def _whole(data: bytes) -> Any:
    """The value of a file that is one JSON text, or None where it is not (then it is read by lines)."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _lines(data: bytes) -> Iterator[tuple[int, Any]]:
    for line, raw in enumerate(io.BytesIO(data), start=1):
        if raw.strip():
            yield line, _json(raw)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _Unreadable(f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return _Unreadable(f"not JSON: {error.msg} at character {error.pos}: {shorten(raw.decode('utf-8'))}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested brackets
        return _Unreadable(f"not JSON: {error}")


def _array(path: pathlib.Path, data: bytes) -> Iterator[tuple[None, Any]]:
    # Bytes that are not UTF-8 become lone surrogates, and only the rows that hold them are lost.
    text = data.decode("utf-8", "surrogateescape")
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply to be read") from error
    except ValueError as error:
        position = error.pos if isinstance(error, json.JSONDecodeError) else 0
        row, line = _position(text, position)
        raise UserError(
            f"{path}, row {row} (line {line}): not JSON: {error}; the file may be cut off"
            if position
            else f"{path}: not JSON: {error}"
        ) from error
    if not values:
        raise UserError(f"{path} holds no rows")
    return ((None, value) for value in values)


def _position(text: str, position: int) -> tuple[int, int]:
    """(row, line) of a place in the text of an array: how many elements end before it."""
    decoder, row, at = json.JSONDecoder(), 0, text.index("[") + 1
    skip = re.compile(r"[\s,]*")
    while at < position:
        at = skip.match(text, at).end()  # type: ignore[union-attr]  # the pattern matches everywhere
        try:
            _, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        row += 1
    return row, text.count("\n", 0, position) + 1


def _table(path: pathlib.Path, data: bytes, delimiter: str) -> Iterator[tuple[int, Any]]:
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
                yield reader.line_num, _Unreadable(f"{len(cells)} cells under a header of {len(header)}")
            elif cells:
                yield reader.line_num, dict(zip(header, cells))
    except csv.Error as error:
        raise UserError(f"{path} (line {reader.line_num}): not CSV: {error}") from error


def _parquet(path: pathlib.Path, data: bytes) -> Iterator[tuple[None, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        for batch in file.iter_batches(batch_size=4096):
            for value in batch.to_pylist():
                yield None, value
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not parquet: {error}") from error


def _saved_dataset(folder: pathlib.Path, split: str | None) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a saved dataset: {error}") from error
    yield from _dataset(str(folder), data, split)


def _hub(path: str, split: str | None, name: str | None, revision: str | None, rows: Rows) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # `datasets` and `huggingface_hub` raise many kinds; all mean: not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path!r} is no file here, and could not be loaded as a hub dataset"
            f" (name={name!r}, split={split!r}, revision={revision!r}): {reason}"
        ) from error
    rows.hashes.append((f"{path}@{revision or 'main'}", _fingerprint(data)))
    yield from _dataset(path, data, None)


def _fingerprint(data: Any) -> str:
    parts = data.values() if isinstance(data, Mapping) else [data]
    return hashlib.sha256("".join(part._fingerprint for part in parts).encode()).hexdigest()


def _dataset(file: str, data: Any, split: str | None) -> Iterator[Row]:
    if isinstance(data, Mapping):
        if split is None and len(data) > 1 and "train" not in data:
            raise UserError(f"{file}: say which split: {', '.join(data)}")
        chosen = split or ("train" if "train" in data else next(iter(data)))
        if chosen not in data:
            raise UserError(f"{file}: no split {chosen!r}; there are {', '.join(data)}")
        data = data[chosen]
    elif split is not None:
        raise UserError(f"{file}: one dataset without splits: split={split!r} does not apply")
    for number, value in enumerate(data):
        yield _row(file, number, number, None, value)


def tfds_source(folder: str, name: str | None = None, split: str = "train") -> Any:
    """Random access to the records of a TFDS dataset in ArrayRecord files. name: its config (`all` or the only one)."""
    import tensorflow_datasets as tfds

    place = pathlib.Path(folder).expanduser()
    versions = sorted(path.parent for path in place.rglob("features.json"))
    configs = {path.parent.name: path for path in versions}  # the newest version of each
    chosen = name or ("all" if "all" in configs else next(iter(configs), ""))
    if chosen not in configs or (name is None and chosen != "all" and len(configs) > 1):
        raise UserError(f"{folder}: no TFDS config {name!r}; there are {', '.join(configs) or 'none'}")
    try:
        return tfds.builder_from_directory(str(configs[chosen])).as_data_source(split=split)
    except (ValueError, OSError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{configs[chosen]}: split {split!r} cannot be read: {reason}") from error


def _tfds(folder: pathlib.Path, split: str | None, name: str | None) -> Iterator[Row]:
    source = tfds_source(str(folder), name, split or "train")
    for number in range(len(source)):
        yield Row(str(folder), number, number, None, _plain(source[number]))


def _plain(value: Any) -> Any:
    """A record of bytes and NumPy scalars as text and numbers; a sequence of features as a list of objects."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


# --- saying what was found -------------------------------------------------------------------------------------------


def shorten(value: Any, limit: int = 120) -> str:
    """A value as short printable text."""
    text = value[: 2 * limit] if isinstance(value, str) else repr(value)[: 2 * limit]
    text = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _kind(value: Any) -> str:
    names: Iterable[tuple[Any, str]] = (
        (type(None), "null"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def describe(value: Any) -> str:
    """What was found, for a report: 'a list: [1, 2]', 'null', 'blank text'."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"text: {shorten(value)}" if value.strip() else "blank text"
    return f"{_kind(value)}: {shorten(value)}"
