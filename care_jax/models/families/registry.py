"""The supported model families. A new one is a module beside this one and an entry of `FAMILIES`."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

from care_jax.errors import UserError, nearest
from care_jax.models.arch import Arch
from care_jax.models.families import config_json, gemma, llama, qwen
from care_jax.models.families.config_json import ConfigJson
from care_jax.textfiles import JsonObject


@dataclasses.dataclass(frozen=True)
class Family:
    """Reads and writes the config.json of one `model_type`.

    read: config.json -> Arch. transformers_class: the class of transformers that loads a saved model. layer_keys: the
    keys of config.json that describe the rotary embeddings and the kinds of the layers, in the spelling of
    transformers 4 and of 5.
    """

    read: Callable[[ConfigJson], Arch]
    transformers_class: str
    layer_keys: Callable[[Arch], JsonObject] = config_json.rope_keys


FAMILIES: dict[str, Family] = {
    "llama": Family(llama.read_llama, "LlamaForCausalLM"),
    "mistral": Family(llama.read_mistral, "MistralForCausalLM"),
    "qwen2": Family(qwen.read_qwen2, "Qwen2ForCausalLM"),
    "qwen3": Family(qwen.read_qwen3, "Qwen3ForCausalLM"),
    "gemma2": Family(gemma.read_gemma2, "Gemma2ForCausalLM"),
    "gemma3_text": Family(gemma.read_gemma3_text, "Gemma3ForCausalLM", gemma.gemma3_layer_keys),
    "gemma3": Family(gemma.read_gemma3, "Gemma3ForCausalLM", gemma.gemma3_layer_keys),  # becomes a gemma3_text model
}

# Tensors that a checkpoint may hold and a text model does not need, and the prefixes of multimodal checkpoints.
_IGNORED_PARTS = ("rotary_emb.inv_freq",)
_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_TEXT_PREFIXES = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.",
    "model.language_model.": "model.",
}


def read_config(path: str | pathlib.Path) -> Arch:
    """Returns the Arch of a config.json, given the file or its folder.

    Raises UserError for a missing or broken file, an unknown family and a quantized checkpoint.
    """
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
        raise UserError(f"{file}: quantized checkpoints are not supported; use one in float32, bfloat16 or float16")
    try:
        return dataclasses.replace(FAMILIES[family].read(config), folder=str(file.parent.absolute()))
    except UserError as error:
        raise UserError(f"{file.parent}: {error}") from error


def write_config(arch: Arch, dtype: str) -> JsonObject:
    """Returns the config.json of a model saved in `dtype`: the keys it was read from, updated."""
    family = FAMILIES[arch.family]
    config = arch.config_dict
    config.setdefault("architectures", [family.transformers_class])
    config |= {"model_type": arch.family, "torch_dtype": dtype, "dtype": dtype}
    return config | family.layer_keys(arch)


def text_tensor_name(name: str) -> str | None:
    """Returns the name that a checkpoint's tensor has in a text model, or None if a text model does not use it."""
    if name.startswith(_VISION_PREFIXES) or any(part in name for part in _IGNORED_PARTS):
        return None
    for prefix, text_prefix in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return text_prefix + name.removeprefix(prefix)
    return name
