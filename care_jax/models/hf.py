"""From Hugging Face: a folder or hub id becomes a model and its parameters. The way out is export.py."""

import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from care_jax import sharding
from care_jax.errors import UserError, nearest
from care_jax.models import arch as arch_lib
from care_jax.models import attention as attention_lib
from care_jax.models import gemma, llama, qwen, safetensors_io
from care_jax.models.arch import Arch, Tree, Weight
from care_jax.models.decoder import REMAT, Decoder

FAMILIES: dict[str, Callable[[Any], Arch]] = {
    "llama": llama.read_llama,
    "mistral": llama.read_mistral,
    "qwen2": qwen.read_qwen2,
    "qwen3": qwen.read_qwen3,
    "gemma2": gemma.read_gemma2,
    "gemma3_text": gemma.read_gemma3_text,
    "gemma3": gemma.read_gemma3,
}

# What a folder is asked for from the hub: never code, never pickles.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "*.spm", "*.tiktoken"]
# Tensors that a checkpoint may carry and a text model does not need.
_IGNORED_PARTS = ("rotary_emb.inv_freq",)
_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def folder_of(path: str | pathlib.Path, revision: str | None = None) -> pathlib.Path:
    """The local folder of a path, or of a hub id at `revision` (downloaded once, by one process)."""
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
        return folder
    name = str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"model.path: {name}: no such folder, and not a hub id (owner/name)")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def download() -> str:
        return huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES)

    try:
        return pathlib.Path(download())
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model.path: {name}: no such folder, and the hub does not give it: {error}") from error


def read_config(path: str | pathlib.Path) -> Arch:
    """The Arch of a config.json, given the file or its folder. UserError for a missing file or unknown family."""
    file = pathlib.Path(path)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"{file}: no such file; a model folder holds a config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in FAMILIES:
        raise UserError(
            f"{file}: model_type {family!r} is not supported{nearest(str(family), tuple(FAMILIES))}; "
            f"supported: {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise UserError(f"{file}: quantized checkpoints are not supported; give one in float32, bfloat16 or float16")
    try:
        return FAMILIES[family](config)
    except UserError as error:
        raise UserError(f"{file.parent}: {error}") from error


def _model(arch: Arch, dtype: Any, remat: str, attention: str, where: str) -> Decoder:
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise UserError(f"{where}: dtype {dtype!r} is none; expected float32 or bfloat16") from error
    attention_lib.choose(attention, 1)
    if remat not in REMAT:
        raise UserError(f"model.remat: {remat!r} is not one of {', '.join(REMAT)}{nearest(remat, REMAT)}")
    return Decoder(arch, dtype=dtype, remat=remat, attention=attention)


def from_config(
    path: str | pathlib.Path, *, dtype: Any = "float32", remat: str = "none", attention: str = "auto"
) -> Decoder:
    """The model of a config.json (the file or its folder), with no weights; see `init_params`."""
    return _model(read_config(path), dtype, remat, attention, str(path))


Index = tuple[slice, ...]


def _place(path: str, weight: Weight, piece: Callable[[Index], np.ndarray], mesh: Mesh | None) -> jax.Array:
    """One weight, each device's piece of it made on the host and sent there."""
    whole = tuple(slice(0, size) for size in weight.shape)
    if mesh is None:
        return jnp.asarray(piece(whole))
    pieces: dict[Any, np.ndarray] = {}  # devices that hold the same piece share one reading

    def shared_piece(index: Index | None) -> np.ndarray:
        index = whole if index is None else index
        key = tuple((one.start, one.stop) for one in index)
        if key not in pieces:
            pieces[key] = piece(index)
        return pieces[key]

    placed = sharding.sharding(mesh, weight.axes, weight.shape, path)
    return jax.make_array_from_callback(weight.shape, placed, shared_piece)


def init_params(model: Decoder, seed: int, mesh: Mesh | None = None, param_dtype: Any = "float32") -> Tree:
    """Fresh parameters from a seed: normal(0, init_std), zeros and ones, as declared.

    Drawn on the host, one weight at a time: the same numbers on every machine and mesh, and nothing to compile.
    """
    dtype = jnp.dtype(param_dtype)
    places = itertools.count()

    def fresh(path: str, weight: Weight) -> jax.Array:
        rng = np.random.default_rng([seed, next(places)])
        if weight.init == "normal":
            whole = rng.standard_normal(weight.shape, np.float32)
            whole *= np.float32(model.arch.init_std)
        else:
            whole = np.full(weight.shape, 0 if weight.init == "zeros" else 1, np.float32)
        return _place(path, weight, lambda index: whole[index].astype(dtype), mesh)

    return arch_lib.map_weights(fresh, arch_lib.declarations(model.arch))


def _own_name(name: str) -> str | None:
    """The text model's name of a checkpoint's tensor, None for one that a text model ignores."""
    if name.startswith(_VISION_PREFIXES) or any(part in name for part in _IGNORED_PARTS):
        return None
    for prefix, own in (("language_model.lm_head.", "lm_head."), ("language_model.model.", "model."),
                        ("model.language_model.", "model.")):  # fmt: skip
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _check(arch: Arch, found: dict[str, safetensors_io.Tensor], folder: pathlib.Path) -> None:
    """One UserError listing every missing, surplus or misshapen tensor."""
    expected: dict[str, tuple[int, ...]] = {}
    for weight in jax.tree.leaves(arch_lib.declarations(arch), is_leaf=arch_lib.is_weight):
        for layer in range(arch.layers if weight.stacked else 1):
            expected[weight.hf_name.format(i=layer)] = weight.hf_shape
    lines = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    lines += [f"surplus {name} {list(found[name].shape)}" for name in found if name not in expected]
    for name, shape in expected.items():
        if name in found and found[name].shape != shape:
            lines.append(f"misshapen {name}: found {list(found[name].shape)}, expected {list(shape)}")
        if name in found and found[name].dtype not in safetensors_io.DTYPES:
            lines.append(f"{name}: dtype {found[name].dtype}, expected one of {', '.join(safetensors_io.DTYPES)}")
    if lines:
        raise UserError(f"{folder}: its tensors do not fit its config.json ({arch.family}):\n  " + "\n  ".join(lines))


def _load(
    path: str, weight: Weight, found: dict[str, safetensors_io.Tensor], dtype: Any, mesh: Mesh | None
) -> jax.Array:
    """One weight straight to its place and dtype; the host holds at most this weight's own pieces."""

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        spans = [range(*one.indices(size)) for one, size in zip(index, weight.shape)]
        out = np.empty([len(span) for span in spans], dtype)
        inner = index[1:] if weight.stacked else index
        shape = weight.shape[1:] if weight.stacked else weight.shape
        # A file joins heads and their size; reshaping a mapped tensor is free, so the slice alone is read.
        for place, layer in enumerate(spans[0] if weight.stacked else range(1)):
            value = found[weight.hf_name.format(i=layer)].read(shape, inner)
            out[(place, ...) if weight.stacked else ...] = value
        return out

    return _place(path, weight, piece, mesh)


def from_pretrained(
    path: str | pathlib.Path,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    *,
    param_dtype: Any = None,
    remat: str = "none",
    attention: str = "auto",
    revision: str | None = None,
) -> tuple[Decoder, Tree]:
    """A model and its parameters from a Hugging Face folder or hub id (at `revision`); safetensors only.

    dtype: of the computation; param_dtype: of the weights, by default the same. Each weight goes straight to its place
    on the mesh. Raises UserError for a folder, family or tensor that does not fit, listing every tensor at once.
    """
    folder = folder_of(path, revision)
    arch = read_config(folder)
    model = _model(arch, dtype, remat, attention, str(path))
    found: dict[str, safetensors_io.Tensor] = {}
    for name, tensor in safetensors_io.folder_tensors(folder).items():
        own = _own_name(name)
        # A checkpoint may carry a head though its config ties it: the tie wins.
        if own is not None and not (own == "lm_head.weight" and arch.tied):
            found[own] = tensor
    _check(arch, found, folder)
    dtype_of_params = jnp.dtype(model.dtype if param_dtype is None else param_dtype)
    params = arch_lib.map_weights(
        lambda name, weight: _load(name, weight, found, dtype_of_params, mesh), arch_lib.declarations(arch)
    )
    return model, params
