"""Reads rows of datasets that another library opens: hub ids and saved datasets (`datasets`), TFDS folders."""

import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from care_jax.data.rows.row import Row, Rows
from care_jax.errors import UserError


def read_saved_dataset(folder: pathlib.Path, split: str | None) -> Iterator[Row]:
    """Yields the rows of a folder that `save_to_disk` of `datasets` wrote."""
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a saved dataset: {error}") from error
    yield from _read_dataset(str(folder), data, split)


def read_hub_dataset(path: str, split: str | None, name: str | None, revision: str | None, rows: Rows) -> Iterator[Row]:
    """Yields the rows of a hub dataset, and adds its fingerprint to the hashes of `rows`."""
    import datasets

    try:
        data = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # `datasets` and `huggingface_hub` raise many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path!r} is not a local file and could not be loaded as a hub dataset"
            f" (name={name!r}, split={split!r}, revision={revision!r}): {reason}"
        ) from error
    parts = data.values() if isinstance(data, Mapping) else [data]
    fingerprint = hashlib.sha256("".join(part._fingerprint for part in parts).encode()).hexdigest()
    rows.hashes.append((f"{path}@{revision or 'main'}", fingerprint))
    yield from _read_dataset(path, data, None)


def _read_dataset(file: str, data: Any, split: str | None) -> Iterator[Row]:
    if isinstance(data, Mapping):
        if split is None and len(data) > 1 and "train" not in data:
            raise UserError(f"{file}: choose a split: {', '.join(data)}")
        split = split or ("train" if "train" in data else next(iter(data)))
        if split not in data:
            raise UserError(f"{file}: no split {split!r}; there are {', '.join(data)}")
        data = data[split]
    elif split is not None:
        raise UserError(f"{file}: the dataset has no splits: split={split!r} does not apply")
    for number, value in enumerate(data):
        yield Row.make(file, number, number, None, value)


def tfds_source(folder: str, name: str | None = None, split: str = "train") -> Any:
    """Returns random access to the records of a TFDS dataset in ArrayRecord files.

    name: its config; None: `all`, or the only one.
    """
    import tensorflow_datasets as tfds

    versions = sorted(path.parent for path in pathlib.Path(folder).expanduser().rglob("features.json"))
    configs = {path.parent.name: path for path in versions}  # the newest version of each
    chosen = name or ("all" if "all" in configs else next(iter(configs), ""))
    if chosen not in configs or (name is None and chosen != "all" and len(configs) > 1):
        raise UserError(f"{folder}: no TFDS config {name!r}; there are {', '.join(configs) or 'none'}")
    try:
        return tfds.builder_from_directory(str(configs[chosen])).as_data_source(split=split)
    except (ValueError, OSError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{configs[chosen]}: split {split!r} cannot be read: {reason}") from error


def read_tfds_rows(folder: pathlib.Path, split: str | None, name: str | None) -> Iterator[Row]:
    """Yields the records of a TFDS folder as rows."""
    source = tfds_source(str(folder), name, split or "train")
    for number in range(len(source)):
        yield Row(str(folder), number, number, None, _plain(source[number]))


def _plain(value: Any) -> Any:
    """Converts a record of bytes, NumPy scalars and arrays to text, numbers and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
