"""The decoder, its families, LoRA adapters, generation, and reading and writing Hugging Face folders."""

from care_jax.models import lora, sampling
from care_jax.models.arch import Arch, Weight, abstract_params, decay_mask, declarations, num_params, param_shardings
from care_jax.models.decoder import Decoder, head_weight
from care_jax.models.families.registry import FAMILIES, read_config
from care_jax.models.hf.export import save_pretrained
from care_jax.models.hf.from_pretrained import from_config, from_pretrained, init_params
from care_jax.models.hf.locate import resolve

__all__ = [
    "FAMILIES",
    "Arch",
    "Decoder",
    "Weight",
    "abstract_params",
    "decay_mask",
    "declarations",
    "from_config",
    "from_pretrained",
    "head_weight",
    "init_params",
    "lora",
    "num_params",
    "param_shardings",
    "read_config",
    "resolve",
    "sampling",
    "save_pretrained",
]
