"""From Hugging Face: a folder or hub id becomes a model and its parameters. The way out is export.py."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from care_jax.errors import UserError, nearest
from care_jax.models import arch as arch_lib
from care_jax.models import attention as attention_lib
from care_jax.models.arch import Arch, Params, Weight
from care_jax.models.decoder import REMAT, Decoder
from care_jax.models.families import gemma, llama, qwen
from care_jax.models.hf import safetensors_io, weights
from care_jax.models.hf.hub import resolve

FAMILIES: dict[str, Callable[[Any], Arch]] = {
    "llama": llama.read_llama,
    "mistral": llama.read_mistral,
    "qwen2": qwen.read_qwen2,
    "qwen3": qwen.read_qwen3,
    "gemma2": gemma.read_gemma2,
    "gemma3_text": gemma.read_gemma3_text,
    "gemma3": gemma.read_gemma3,
}

# Tensors that a checkpoint may carry and a text model does not need.
_IGNORED_PARTS = ("rotary_emb.inv_freq",)
_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


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
        return dataclasses.replace(FAMILIES[family](config), folder=str(file.parent.absolute()))
    except UserError as error:
        raise UserError(f"{file.parent}: {error}") from error


def _model(arch: Arch, dtype: Any, remat: str, attention: str, where: str) -> Decoder:
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise UserError(f"{where}: dtype {dtype!r} is none; expected float32 or bfloat16") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{where}: dtype {dtype.name} cannot hold weights; expected float32 or bfloat16")
    attention_lib.check(attention, arch.head_dim, arch.attn_soft_cap)
    if remat not in REMAT:
        raise UserError(f"model.remat: {remat!r} is not one of {', '.join(REMAT)}{nearest(remat, REMAT)}")
    return Decoder(arch, dtype=dtype, remat=remat, attention=attention)


def from_config(
    path: str | pathlib.Path, *, dtype: Any = "float32", remat: str = "none", attention: str = "auto"
) -> Decoder:
    """The model of a config.json (the file or its folder), with no weights; see `init_params`."""
    return _model(read_config(path), dtype, remat, attention, str(path))


def init_params(model: Decoder, seed: int, mesh: Mesh | None = None, param_dtype: Any = "float32") -> Params:
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
        return weights.place(path, weight, lambda index: whole[index].astype(dtype), mesh)

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


def from_pretrained(
    path: str | pathlib.Path,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    *,
    param_dtype: Any = None,
    remat: str = "none",
    attention: str = "auto",
    revision: str | None = None,
) -> tuple[Decoder, Params]:
    """A model and its parameters from a folder, a hub id (at `revision`) or a URL; safetensors only.

    dtype: of the computation; param_dtype: of the weights, by default the same. Each weight goes straight to its place
    on the mesh. Raises UserError for a folder, family or tensor that does not fit, listing every tensor at once.
    """
    folder = resolve(path, revision)
    arch = read_config(folder)
    model = _model(arch, dtype, remat, attention, str(path))
    attention_lib.check_platform(attention)  # weights are here to run; a model without may be compiled for elsewhere
    found: dict[str, safetensors_io.Tensor] = {}
    for name, tensor in safetensors_io.folder_tensors(folder).items():
        own = _own_name(name)
        # A checkpoint may carry a head though its config ties it: the tie wins.
        if own is not None and not (own == "lm_head.weight" and arch.tied):
            found[own] = tensor
    declared = arch_lib.declarations(arch)
    weights.check(declared, found, f"{folder}: its tensors do not fit its config.json ({arch.family})")
    dtype_of_params = jnp.dtype(model.dtype if param_dtype is None else param_dtype)
    params = arch_lib.map_weights(
        lambda name, weight: weights.load_weights(name, weight, found, dtype_of_params, mesh), declared
    )
    return model, params
