"""Reads safetensors in parts: the header, then any slice of any tensor, from a disk or any store of fsspec."""

import json
import math
import pathlib
from dataclasses import dataclass

import fsspec
import ml_dtypes
import numpy as np

from care_jax.errors import UserError
from care_jax.models.hf.locate import WEIGHTS_URL

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# A header has about a hundred bytes per tensor: a longer one is a damaged file.
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file (a path or a URL): its offset in bytes, its dtype as the file names it, and its shape."""

    file: pathlib.Path | str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """Reads a slice of the tensor, reshaped to `shape`, into a new array in the file's dtype."""
        dtype = DTYPES[self.dtype]
        if isinstance(self.file, pathlib.Path):
            return np.array(np.memmap(self.file, dtype, "r", self.offset, self.shape).reshape(shape)[index])
        # Entries of the first dimension are contiguous: only those of the slice are fetched.
        first, last, _ = index[0].indices(shape[0]) if index else (0, shape[0], 1)
        row = math.prod(shape[1:]) * dtype.itemsize
        store, name = fsspec.core.url_to_fs(self.file)
        data = store.cat_file(name, start=self.offset + first * row, end=self.offset + last * row)
        return np.array(np.frombuffer(data, dtype).reshape(last - first, *shape[1:])[(slice(None), *index[1:])])


def read_header(file: pathlib.Path | str) -> dict[str, Tensor]:
    """Returns every tensor of one file by name; raises UserError if it is not a safetensors file or is cut short."""
    store, name = fsspec.core.url_to_fs(str(file))
    size = store.size(name)
    length = int.from_bytes(store.cat_file(name, start=0, end=8), "little")
    if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
        raise UserError(f"{file}: not a safetensors file, or one cut short ({size} bytes)")
    try:
        header = json.loads(store.cat_file(name, start=8, end=8 + length))
        header.pop("__metadata__", None)
        entries = {
            tensor: (int(begin), int(end), str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            for tensor, entry in header.items()
            for begin, end in [entry["data_offsets"]]
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not a safetensors file: its header is damaged ({error!r})") from error
    for tensor, (begin, end, dtype, shape) in entries.items():
        if 8 + length + end > size:
            raise UserError(f"{file}: cut short: {tensor} ends at byte {8 + length + end}, the file at {size}")
        if begin < 0 or (dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize):
            raise UserError(
                f"{file}: not a safetensors file: its header gives {tensor}, {dtype} {list(shape)}, "
                f"bytes {begin} to {end}"
            )
    return {
        tensor: Tensor(file, 8 + length + begin, dtype, shape) for tensor, (begin, _, dtype, shape) in entries.items()
    }


def folder_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
    """Returns every tensor of a checkpoint folder by name: of the files that its index names, or of all its files.

    Raises UserError if the folder holds no safetensors file, or the index names one that is missing.
    """
    url_file = folder / WEIGHTS_URL
    remote = url_file.is_file()
    where = url_file.read_text() if remote else str(folder.absolute())
    store, root = fsspec.core.url_to_fs(where)
    present = {name.rsplit("/", 1)[-1] for name in store.ls(root, detail=False)}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted({str(name) for name in weight_map.values()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}/{index.name}: not an index of safetensors files ({error!r})") from error
        missing = [name for name in names if name not in present]
        if missing:
            raise UserError(f"{where}: {index.name} names files that are not there: {', '.join(missing)}")
    elif "model.safetensors" in present:
        names = ["model.safetensors"]
    else:
        names = sorted(name for name in present if name.endswith(".safetensors"))
    if not names:
        pickles = sorted(name for name in present if name.endswith(".bin"))
        raise UserError(
            f"{where}: holds no .safetensors file"
            + (f" (only {', '.join(pickles)}: pickles are not read)" if pickles else "")
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_header(f"{where}/{name}" if remote else folder / name)
    return tensors
