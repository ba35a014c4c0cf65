"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): a second collection beside the parameters.

`model.apply({"params": p, "lora": l}, ...)`. The base does not change: without the collection it runs alone, and that
is the reference. B is zero at the start, so that training starts from the base.
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from care_jax.distributed import is_writer
from care_jax.errors import UserError, nearest
from care_jax.models import arch as arch_lib
from care_jax.models.arch import Arch, Params, Weight
from care_jax.models.decoder import Decoder
from care_jax.models.hf import export, weights
from care_jax.models.hf.safetensors_io import read_header
from care_jax.textfiles import JsonObject, write_json

CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # the files of a PEFT adapter folder
# PEFT's name of a linear map -> its place in a block's tree.
TARGETS = {
    "q_proj": ("attn", "q"),
    "k_proj": ("attn", "k"),
    "v_proj": ("attn", "v"),
    "o_proj": ("attn", "o"),
    "gate_proj": ("mlp", "gate"),
    "up_proj": ("mlp", "up"),
    "down_proj": ("mlp", "down"),
}


def targets(target_modules: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the adapted maps, in the order of TARGETS (`all`: every one).

    Raises UserError for an unknown name, and if there is none.
    """
    if target_modules in ("all", "all-linear"):
        return tuple(TARGETS)
    names = (target_modules,) if isinstance(target_modules, str) else tuple(target_modules)
    for name in names:
        if name not in TARGETS:
            raise UserError(
                f"lora.target_modules: {name!r} is not one of all, {', '.join(TARGETS)}{nearest(name, tuple(TARGETS))}"
            )
    if not names:
        raise UserError("lora.target_modules: is empty; expected all, or names of linear maps")
    return tuple(name for name in TARGETS if name in names)


def declarations(arch: Arch, r: int, target_modules: str | Sequence[str] = "all") -> Params:
    """Returns the tree of `Weight` of the adapters: a [L, r, *in] and b [L, *out, r] for each target."""
    if r < 1:
        raise UserError(f"lora.r: found {r}, expected a rank of at least 1")
    blocks = arch_lib.declarations(arch)["blocks"]
    tree: Params = {}
    for name in targets(target_modules):
        part, which = TARGETS[name]
        base: Weight = blocks[part][which]["weight"]
        inputs = 2 if which == "o" else 1
        shape, axes = base.shape[1:], base.axes[1:]
        module = "base_model.model." + base.hf_name.removesuffix(".weight")
        tree.setdefault(part, {})[which] = {
            "a": Weight(
                (arch.layers, r, *shape[-inputs:]),
                ("layers", "lora", *axes[-inputs:]),
                "normal",
                f"{module}.lora_A.weight",
                (r, base.hf_shape[1]),
                decay=True,
            ),
            "b": Weight(
                (arch.layers, *shape[:-inputs], r),
                ("layers", *axes[:-inputs], "lora"),
                "zeros",
                f"{module}.lora_B.weight",
                (base.hf_shape[0], r),
                decay=True,
            ),
        }
    return {"blocks": tree}


def attach(model: Decoder, r: int, alpha: float) -> Decoder:
    """Returns the model that takes a `lora` collection of rank r, scaled by alpha / r."""
    return model.clone(lora_scale=alpha / r)


def init(
    model: Decoder, r: int, target_modules: str | Sequence[str] = "all", *, seed: int = 0, mesh: Mesh | None = None
) -> Params:
    """Returns fresh adapters in float32: A uniform within 1/sqrt(inputs) as in PEFT, B zero; the same on every mesh."""
    numbers = itertools.count()

    def draw(path: str, weight: Weight) -> jax.Array:
        rng = np.random.default_rng([seed, next(numbers), 1])
        if weight.init == "zeros":
            values = np.zeros(weight.shape, np.float32)
        else:
            bound = weight.hf_shape[1] ** -0.5
            values = (bound * (2 * rng.random(weight.shape, np.float32) - 1)).astype(np.float32)
        return weights.make_weight(path, weight, lambda index: values[index], mesh)

    return arch_lib.map_weights(draw, declarations(model.arch, r, target_modules))


def shardings(arch: Arch, r: int, target_modules: str | Sequence[str], mesh: Mesh) -> Params:
    """Returns the tree of NamedSharding of the adapters."""
    return arch_lib.map_weights(lambda path, weight: weight.sharding(mesh, path), declarations(arch, r, target_modules))


def merge(model: Decoder, params: Params, lora: Params, dtype: DTypeLike = "float32") -> Params:
    """Returns the parameters with the adapters added, W + alpha/r B A, for a model without a `lora` collection.

    Sums are float32. Adapted weights are in `dtype` (float32 loses nothing of the sum), the others as they were.
    """
    scale = _scale(model)
    dtype = jnp.dtype(dtype)

    @jax.jit
    def merged(weight: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        factors = (x.astype(jnp.float32) for x in (b, a))
        product = jax.vmap(lambda b, a: jnp.tensordot(b, a, axes=1, precision="highest"))(*factors)
        return (weight.astype(jnp.float32) + scale * product).astype(dtype)

    blocks = {name: dict(part) for name, part in params["blocks"].items()}
    for part, maps in lora["blocks"].items():
        for which, adapter in maps.items():
            base = blocks[part][which]
            blocks[part][which] = base | {"weight": merged(base["weight"], adapter["a"], adapter["b"])}
    return {**params, "blocks": blocks}


def _scale(model: Decoder) -> float:
    if model.lora_scale is None:
        raise ValueError("the model has no adapters: see care_jax.models.lora.attach")
    return model.lora_scale


def save_adapter(
    folder: str | pathlib.Path, model: Decoder, lora: Params, base: str, revision: str | None = None
) -> None:
    """Writes a PEFT adapter folder: its config and safetensors. base: the model's path, or hub id (at `revision`).

    All processes call this; process 0 writes.
    """
    blocks = lora["blocks"]
    names = [name for name, (part, which) in TARGETS.items() if which in blocks.get(part, {})]
    part, which = TARGETS[names[0]]
    r = blocks[part][which]["b"].shape[-1]
    config: JsonObject = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": r,
        "lora_alpha": _scale(model) * r,
        "target_modules": names,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    with export.folder_aside(folder) as aside:
        tensors = export.file_tensors(declarations(model.arch, r, names))
        arrays = {tensor.name: np.ascontiguousarray(tensor.read(lora)) for tensor in tensors}
        if is_writer():
            save_file(arrays, aside / _WEIGHTS, metadata={"format": "pt"})
            write_json(aside / CONFIG, config, indent=2)


def _read_config(folder: str | pathlib.Path) -> JsonObject:
    """Reads the configuration of a PEFT adapter folder."""
    file = pathlib.Path(folder) / CONFIG
    for needed in (file, file.with_name(_WEIGHTS)):
        if not needed.is_file():
            raise UserError(f"{needed}: no such file; a PEFT adapter folder holds {CONFIG} and {_WEIGHTS}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from error


def base_of(folder: str | pathlib.Path) -> tuple[str, str | None]:
    """Returns the path or hub id of the model that a PEFT adapter folder was trained on, and its revision."""
    config = _read_config(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{pathlib.Path(folder) / CONFIG}: has no base_model_name_or_path")
    return str(base), config.get("revision")


# Keys of a PEFT configuration that change the numbers, and the only values of them that are supported.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "use_bdlora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
}


def load_adapter(folder: str | pathlib.Path, model: Decoder, mesh: Mesh | None = None) -> tuple[Decoder, Params]:
    """Reads a PEFT adapter folder; returns `model` with the adapters' scale, and the adapters in float32.

    Raises UserError if a file is missing or damaged, or an option or a tensor does not fit.
    """
    file, weights_file = pathlib.Path(folder) / CONFIG, pathlib.Path(folder) / _WEIGHTS
    config = _read_config(folder)
    for key, supported in _SUPPORTED.items():
        if config.get(key, supported[0]) not in supported:
            raise UserError(f"{file}: {key}: {config[key]!r} is not supported; expected {supported[0]!r}")
    tensors = read_header(weights_file)
    r = int(config["r"])
    # PEFT may write patterns or full paths as targets, so the names of the tensors decide what is adapted.
    names = [name for name in TARGETS if any(f".{name}.lora_" in tensor for tensor in tensors)]
    if not names:
        raise UserError(f"{weights_file}: adapts none of {', '.join(TARGETS)}")
    declared = declarations(model.arch, r, names)
    weights.check_tensors(declared, tensors, f"{folder}: its tensors do not fit the model and r={r}")
    read = functools.partial(weights.read_weight, tensors=tensors, dtype=jnp.float32, mesh=mesh)
    scale = config["lora_alpha"] / (r**0.5 if config.get("use_rslora") else r)
    return model.clone(lora_scale=scale), arch_lib.map_weights(read, declared)
