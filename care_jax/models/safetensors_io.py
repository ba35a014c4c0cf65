"""Reading safetensors piecemeal: the header, then any slice of any tensor, one tensor mapped at a time."""

import json
import pathlib
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from care_jax.errors import UserError

DTYPES: dict[str, Any] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# A header is some bytes a tensor; more than this is not one.
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: its file, offset in bytes, dtype as the file names it, and shape."""

    file: pathlib.Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """A slice of the tensor viewed in `shape`, as a new array in the file's dtype; nothing stays mapped."""
        mapped = np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)
        return np.array(mapped.reshape(shape)[index])


def tensors(file: pathlib.Path) -> dict[str, Tensor]:
    """Every tensor of one file by name. UserError for a file that is no safetensors or is cut short."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise UserError(f"{file}: not a safetensors file, or one cut short ({size} bytes)")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise UserError(f"{file}: not a safetensors file: its header is no JSON ({error})") from error
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if 8 + length + end > size:
            raise UserError(f"{file}: cut short: {name} ends at byte {8 + length + end}, the file at {size}")
        found[name] = Tensor(file, 8 + length + begin, entry["dtype"], tuple(entry["shape"]))
    return found


def folder_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder: its index's shards, or its safetensors files.

    UserError where the folder holds none, or the index names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder}: {index.name} names files that are not there: {', '.join(missing)}")
        files = [folder / name for name in names]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = sorted(path.name for path in folder.glob("*.bin"))
        raise UserError(
            f"{folder}: holds no .safetensors file"
            + (f" (only {', '.join(other)}: pickles are not read)" if other else "")
        )
    found: dict[str, Tensor] = {}
    for file in files:
        found |= tensors(file)
    return found
