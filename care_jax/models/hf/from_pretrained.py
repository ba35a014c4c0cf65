"""Reads a Hugging Face folder: a path, hub id or URL becomes a model and its parameters. `export` writes one."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from care_jax.errors import UserError, nearest
from care_jax.models import arch as arch_lib
from care_jax.models import attention as attention_lib
from care_jax.models.arch import Arch, Params, Weight
from care_jax.models.decoder import REMAT, Decoder
from care_jax.models.families.registry import read_config, text_tensor_name
from care_jax.models.hf import weights
from care_jax.models.hf.locate import resolve
from care_jax.models.hf.safetensors_io import Tensor, folder_tensors


def from_config(
    path: str | pathlib.Path, *, dtype: DTypeLike = "float32", remat: str = "none", attention: str = "auto"
) -> Decoder:
    """Returns the model of a config.json (the file or its folder), without weights; see `init_params`."""
    return _model(read_config(path), dtype, remat, attention, str(path))


def init_params(model: Decoder, seed: int, mesh: Mesh | None = None, param_dtype: DTypeLike = "float32") -> Params:
    """Returns fresh parameters: normal(0, init_std), zeros and ones, as declared.

    They are drawn on the host, one weight at a time: the same numbers on every machine and mesh, nothing to compile.
    """
    dtype = jnp.dtype(param_dtype)
    numbers = itertools.count()

    def draw(path: str, weight: Weight) -> jax.Array:
        rng = np.random.default_rng([seed, next(numbers)])
        if weight.init == "normal":
            values = rng.standard_normal(weight.shape, np.float32)
            values *= np.float32(model.arch.init_std)
        else:
            values = np.full(weight.shape, 0 if weight.init == "zeros" else 1, np.float32)
        return weights.make_weight(path, weight, lambda index: values[index].astype(dtype), mesh)

    return arch_lib.map_weights(draw, arch_lib.declarations(model.arch))


def from_pretrained(
    path: str | pathlib.Path,
    dtype: DTypeLike = "float32",
    mesh: Mesh | None = None,
    *,
    param_dtype: DTypeLike | None = None,
    remat: str = "none",
    attention: str = "auto",
    revision: str | None = None,
) -> tuple[Decoder, Params]:
    """Returns the model and the parameters of a folder, a hub id (at `revision`) or a URL; reads safetensors only.

    dtype: compute dtype. param_dtype: dtype of the weights (default: the same). Each weight goes straight to its place
    on the mesh. Raises UserError if the folder, the family or a tensor does not fit; it lists all tensors that do not.
    """
    folder = resolve(path, revision)
    arch = read_config(folder)
    model = _model(arch, dtype, remat, attention, str(path))
    # A model with weights will run here; one without may be compiled for another machine.
    attention_lib.check_platform(attention)
    tensors: dict[str, Tensor] = {}
    for file_name, tensor in folder_tensors(folder).items():
        name = text_tensor_name(file_name)
        # A checkpoint may hold a head although its config ties it to the embedding: the config wins.
        if name is not None and not (name == "lm_head.weight" and arch.tied):
            tensors[name] = tensor
    declared = arch_lib.declarations(arch)
    weights.check_tensors(declared, tensors, f"{folder}: its tensors do not fit its config.json ({arch.family})")
    dtype_of_params = jnp.dtype(model.dtype if param_dtype is None else param_dtype)
    read = functools.partial(weights.read_weight, tensors=tensors, dtype=dtype_of_params, mesh=mesh)
    return model, arch_lib.map_weights(read, declared)


def _model(arch: Arch, dtype: DTypeLike, remat: str, attention: str, path: str) -> Decoder:
    """Returns the model of `arch`; raises UserError for an option that is not one of its values."""
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise UserError(f"{path}: unknown dtype {dtype!r}; expected float32 or bfloat16") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{path}: dtype {dtype.name} cannot hold weights; expected float32 or bfloat16")
    attention_lib.check(attention, arch.head_dim, arch.attn_soft_cap)
    if remat not in REMAT:
        raise UserError(f"model.remat: {remat!r} is not one of {', '.join(REMAT)}{nearest(remat, REMAT)}")
    return Decoder(arch, dtype=dtype, remat=remat, attention=attention)
