"""Writes a Hugging Face folder, which transformers 4 and 5 load, and whatever else reads safetensors."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from care_jax.distributed import barrier, is_writer, to_host
from care_jax.errors import UserError
from care_jax.models import arch as arch_lib
from care_jax.models.arch import Arch, Params, Weight
from care_jax.models.decoder import Decoder
from care_jax.models.families.registry import write_config
from care_jax.textfiles import write_json

SHARD_BYTES = 5_000_000_000

# The other files of a checkpoint folder that a saved model keeps, if its source has them.
CARRIED = (
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)

# Exponent and mantissa bits of the narrow dtypes that a checkpoint may have.
_NARROW = {"bfloat16": (8, 7), "float16": (5, 10)}


@runtime_checkable
class Savable(Protocol):
    """A tokenizer of transformers, or anything else that writes its own files into a folder."""

    def save_pretrained(self, folder: pathlib.Path, /) -> object: ...


def save_pretrained(
    folder: str | pathlib.Path,
    model: Decoder,
    params: Params,
    tokenizer: object = None,
    source: str | pathlib.Path | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a Hugging Face folder: config.json, safetensors (files of at most `shard_bytes`), tokenizer files.

    source: a model folder whose tokenizer, generation_config.json and chat template are copied (default: the one that
    the model was read from; if a tokenizer is given, then only its generation_config.json). tokenizer: saved over them.
    Everything is written into a folder aside, which is then renamed. Weights are saved in their dtype, or in the
    checkpoint's narrower one if no number changes by that: unchanged weights are saved as they were read. All
    processes call this; process 0 writes.
    """
    if tokenizer is not None and not isinstance(tokenizer, Savable):
        raise TypeError(f"expected a tokenizer with a method save_pretrained, found {type(tokenizer).__name__}")
    carried: tuple[str, ...] = CARRIED
    if source is None and tokenizer is not None:
        carried = ("generation_config.json",)  # the model's tokenizer files may belong to another tokenizer
    source = source or model.arch.folder
    with folder_aside(folder) as aside:
        dtype = write_weights(aside, model, params, shard_bytes)
        if is_writer():
            for name in carried if source else ():
                if (pathlib.Path(source) / name).is_file():
                    shutil.copyfile(pathlib.Path(source) / name, aside / name)
            if tokenizer is not None:
                tokenizer.save_pretrained(aside)
            write_json(aside / "config.json", write_config(model.arch, dtype), indent=2)


@contextlib.contextmanager
def folder_aside(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder beside `folder`, and at the end puts it in its place.

    All processes call this: process 0 writes, and the others wait for it. Raises UserError if `folder` is a file.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; an export needs a folder")
    writes = is_writer()
    aside = folder
    if writes:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield aside
        if writes:
            for path in [aside, *aside.iterdir()]:
                path.chmod(0o755 if path.is_dir() else 0o644)  # mkdtemp gives rights to the owner alone
            _move(aside, folder)
    finally:
        if writes and aside.exists():
            shutil.rmtree(aside)
    barrier("exported")  # not named after the folder: that of a mirrored run differs between processes


def _move(aside: pathlib.Path, folder: pathlib.Path) -> None:
    """Moves a finished folder to its place: by one rename, or file by file if `folder` exists, config.json last."""
    if not folder.exists():
        os.replace(aside, folder)
        return
    names = {path.name for path in aside.iterdir()}
    if any(name.startswith("model") for name in names):
        for old in [*folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.index.json")]:
            if old.name not in names:
                old.unlink()
    for path in sorted(aside.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        os.replace(path, folder / path.name)
    aside.rmdir()


def write_weights(folder: pathlib.Path, model: Decoder, params: Params, shard_bytes: int = SHARD_BYTES) -> str:
    """Writes model.safetensors, or shards and their index, into `folder`; returns the dtype's name.

    The host holds one shard at a time. All processes call this; process 0 writes.
    """
    dtype = _saved_dtype(model, params)
    shards = _shards(model.arch, dtype.itemsize, shard_bytes)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays: dict[str, np.ndarray] = {}
        for tensor in shard:
            value = tensor.read(params)
            if is_writer():
                arrays[tensor.name] = np.ascontiguousarray(value.astype(dtype))
            weight_map[tensor.name] = name
            total += tensor.size * dtype.itemsize
        if is_writer():
            save_file(arrays, folder / name, metadata={"format": "pt"})
    if len(shards) > 1 and is_writer():
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index, indent=2)
    return dtype.name


def _saved_dtype(model: Decoder, params: Params) -> np.dtype:
    """Returns the parameters' dtype, or the checkpoint's narrower one if that loses nothing."""
    leaves = jax.tree.leaves(params)
    dtype = jnp.result_type(*leaves)
    config = model.arch.config_dict
    of_checkpoint = str(config.get("dtype") or config.get("torch_dtype") or dtype).removeprefix("torch.")
    if of_checkpoint not in _NARROW or dtype != jnp.float32:
        return dtype

    @jax.jit
    def exact(x: jax.Array) -> jax.Array:
        return jnp.all(jax.lax.reduce_precision(x, *_NARROW[of_checkpoint]) == x)

    return jnp.dtype(of_checkpoint) if all(bool(to_host(exact(leaf))) for leaf in leaves) else dtype


class FileTensor(NamedTuple):
    """One tensor of the file: its name there, declaration, dotted path in the tree, and layer (None: not stacked)."""

    name: str
    weight: Weight
    path: str
    layer: int | None

    @property
    def size(self) -> int:
        return int(np.prod(self.weight.hf_shape))

    def read(self, params: Params) -> np.ndarray:
        """Returns the tensor in the file's shape, on this host. All processes call this."""
        leaf = leaf_at(params, self.path)
        return to_host(leaf if self.layer is None else _layer(leaf, self.layer)).reshape(self.weight.hf_shape)


@jax.jit
def _layer(stack: jax.Array, layer: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)


def leaf_at(params: Params, path: str) -> jax.Array:
    """Returns the array at a dotted path of the tree."""
    *parents, last = path.split(".")
    for name in parents:
        params = params[name]
    return params[last]


def file_tensors(declared: Params) -> list[FileTensor]:
    """Returns every tensor of the file that holds the declared weights, sorted by name."""
    tensors: list[FileTensor] = []

    def visit(path: str, weight: Weight) -> None:
        for layer in range(weight.shape[0]) if weight.stacked else [None]:
            tensors.append(FileTensor(weight.hf_name.format(i=layer), weight, path, layer))

    arch_lib.map_weights(visit, declared)
    return sorted(tensors, key=lambda tensor: tensor.name)


def _shards(arch: Arch, itemsize: int, limit: int) -> list[list[FileTensor]]:
    """Returns the tensors of each file: at most `limit` bytes, unless a single tensor has more."""
    shards: list[list[FileTensor]] = [[]]
    filled = 0
    for tensor in file_tensors(arch_lib.declarations(arch)):
        size = tensor.size * itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards
