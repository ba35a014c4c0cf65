"""To Hugging Face: a folder that transformers 4 and 5 load, and whatever else reads safetensors."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from care_jax.distributed import barrier, is_writer
from care_jax.errors import UserError
from care_jax.models import arch as arch_lib
from care_jax.models.arch import Arch, Params, Rope, Weight
from care_jax.models.decoder import Decoder

SHARD_BYTES = 5_000_000_000

# What a checkpoint folder holds beside its weights and config.json.
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

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
# exponent and mantissa bits of the narrow dtypes that a checkpoint may have come in
_NARROW = {"bfloat16": (8, 7), "float16": (5, 10)}


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
    if rope.scaling == "default":
        return None
    settings: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        settings |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_length,
        }
    return settings


def _rope_parameters(rope: Rope) -> dict[str, Any]:
    return {**(_rope_scaling(rope) or {"rope_type": "default"}), "rope_theta": rope.theta}


def config_json(arch: Arch, dtype: str) -> dict[str, Any]:
    """config.json: the keys it was read from, rotary settings and dtype in the spelling of transformers 4 and of 5."""
    config = arch.config_dict
    config.setdefault("architectures", [_ARCHITECTURES[arch.family]])
    config |= {"model_type": arch.family, "torch_dtype": dtype, "dtype": dtype}
    each = [arch.kinds[kind].rope for kind in arch.layer_kinds]
    if arch.family == "gemma3_text":
        local = [arch.kinds[kind].window is not None for kind in arch.layer_kinds]
        config["layer_types"] = ["sliding_attention" if is_local else "full_attention" for is_local in local]
        every = local.index(False) + 1 if False in local else 0
        if every and local == [(layer + 1) % every != 0 for layer in range(arch.layers)]:
            config.setdefault("sliding_window_pattern", every)  # all that the first versions for Gemma 3 read
        # A model short of one kind keeps the class's base for it: nothing reads it.
        global_rope = next((rope for rope, is_local in zip(each, local) if not is_local), Rope(theta=1_000_000.0))
        local_rope = next((rope for rope, is_local in zip(each, local) if is_local), Rope())
        config["rope_local_base_freq"] = local_rope.theta
        config["rope_parameters"] = {
            "full_attention": _rope_parameters(global_rope),
            "sliding_attention": _rope_parameters(local_rope),
        }
    else:
        global_rope = each[0]
        config["rope_parameters"] = _rope_parameters(global_rope)
    return config | {"rope_theta": global_rope.theta, "rope_scaling": _rope_scaling(global_rope)}


@jax.jit
def _layer(stack: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array on this host, whichever processes hold it (all must call)."""
    if getattr(x, "is_fully_addressable", True):
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _saved_dtype(model: Decoder, params: Params) -> Any:
    """The parameters' dtype; or the narrower one that the checkpoint came in, where that loses nothing."""
    leaves = jax.tree.leaves(params)
    own = jnp.result_type(*leaves)
    config = model.arch.config_dict
    came = str(config.get("dtype") or config.get("torch_dtype") or own).removeprefix("torch.")
    if came not in _NARROW or own != jnp.float32:
        return own

    @jax.jit
    def exact(x: jax.Array) -> jax.Array:
        return jnp.all(jax.lax.reduce_precision(x, *_NARROW[came]) == x)

    return jnp.dtype(came) if all(bool(to_host(exact(leaf))) for leaf in leaves) else own


def tensors(declared: Params) -> Iterator[tuple[str, Weight, str, int | None]]:
    """(name in the file, declaration, dotted path in the tree, layer or None) of every tensor, sorted by name."""
    found = []

    def visit(path: str, weight: Weight) -> None:
        for layer in range(weight.shape[0]) if weight.stacked else [None]:
            found.append((weight.hf_name.format(i=layer), weight, path, layer))

    arch_lib.map_weights(visit, declared)
    yield from sorted(found, key=lambda entry: entry[0])


def leaf_at(params: Params, path: str) -> jax.Array:
    node: Any = params
    for name in path.split("."):
        node = node[name]
    return node


def host_tensor(params: Params, weight: Weight, path: str, layer: int | None) -> np.ndarray:
    """One tensor of the file, in the file's shape, on this host (all processes must call)."""
    leaf = leaf_at(params, path)
    return to_host(leaf if layer is None else _layer(leaf, layer)).reshape(weight.hf_shape)


def _shards(arch: Arch, width: int, limit: int) -> list[list[tuple[str, Weight, str, int | None]]]:
    """The tensors, split so that no file holds more than `limit` bytes unless one tensor alone does."""
    shards: list[list[tuple[str, Weight, str, int | None]]] = [[]]
    filled = 0
    for entry in tensors(arch_lib.declarations(arch)):
        size = int(np.prod(entry[1].hf_shape)) * width
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    return shards


def write_weights(folder: pathlib.Path, model: Decoder, params: Params, shard_bytes: int = SHARD_BYTES) -> str:
    """Writes model.safetensors, or shards and their index, into `folder`; returns the dtype's name.

    One shard is on the host at a time. All processes call; process 0 writes.
    """
    dtype = _saved_dtype(model, params)
    numpy_dtype = np.dtype(ml_dtypes.bfloat16) if dtype == jnp.bfloat16 else np.dtype(dtype)
    shards = _shards(model.arch, numpy_dtype.itemsize, shard_bytes)
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        held: dict[str, np.ndarray] = {}
        for tensor, weight, path, layer in shard:
            value = host_tensor(params, weight, path, layer)
            if is_writer():
                held[tensor] = np.ascontiguousarray(value.astype(numpy_dtype))
            places[tensor] = name
            total += int(np.prod(weight.hf_shape)) * numpy_dtype.itemsize
        if is_writer():
            save_file(held, folder / name, metadata={"format": "pt"})
    if len(shards) > 1 and is_writer():
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return str(np.dtype(dtype).name)


def _move(made: pathlib.Path, folder: pathlib.Path) -> None:
    """Puts a finished folder in its place: one rename; into a folder that exists, file by file, config.json last."""
    if not folder.exists():
        os.replace(made, folder)
        return
    names = {path.name for path in made.iterdir()}
    if any(name.startswith("model") for name in names):
        for old in [*folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.index.json")]:
            if old.name not in names:
                old.unlink()
    for path in sorted(made.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        os.replace(path, folder / path.name)
    made.rmdir()


@contextlib.contextmanager
def written_aside(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A fresh folder beside `folder`, put in its place at the end; process 0 writes, the others wait for it."""
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; an export needs a folder")
    writes = is_writer()
    made = folder
    if writes:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield made
        if writes:
            for path in [made, *made.iterdir()]:
                path.chmod(0o755 if path.is_dir() else 0o644)  # mkdtemp's are the owner's alone
            _move(made, folder)
    finally:
        if writes and made.exists():
            shutil.rmtree(made)
    barrier("exported")  # the folders of a mirrored run differ by process: not named here


def save_pretrained(
    folder: str | pathlib.Path,
    model: Decoder,
    params: Params,
    tokenizer: Any = None,
    source: str | pathlib.Path | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a Hugging Face folder: config.json, safetensors (files of at most `shard_bytes`), tokenizer files.

    source: a model folder whose tokenizer, generation_config.json and chat template are carried over; by default the
    one that the model was read from (with another tokenizer, its generation_config.json alone). tokenizer: a
    transformers tokenizer, saved over them. Everything is written aside first and then renamed. Weights are saved in
    their own dtype, or in the checkpoint's narrower one where every number survives that: so what has not changed
    leaves as it came. All processes call; process 0 writes.
    """
    carried: tuple[str, ...] = CARRIED
    if source is None:
        source = model.arch.folder or None
        if tokenizer is not None:
            carried = ("generation_config.json",)  # the model's tokenizer files may not be this tokenizer's
    with written_aside(folder) as made:
        dtype = write_weights(made, model, params, shard_bytes)
        if is_writer():
            for name in carried if source is not None else ():
                if (pathlib.Path(source or "") / name).is_file():
                    shutil.copyfile(pathlib.Path(source or "") / name, made / name)
            if tokenizer is not None:
                tokenizer.save_pretrained(made)
            text = json.dumps(config_json(model.arch, dtype), indent=2, ensure_ascii=False) + "\n"
            (made / "config.json").write_text(text, encoding="utf-8")
