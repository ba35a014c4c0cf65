"""The config.json of the recipes' models, so that planning them downloads nothing."""

import json
import pathlib
import tempfile

from care_jax import models
from care_jax.errors import UserError
from care_jax.evaluation.model import local_folder
from care_jax.hub import is_hub_id
from care_jax.models.arch import Arch
from care_jax.textfiles import JsonObject

_QWEN25: JsonObject = {
    "model_type": "qwen2",
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
}
_LLAMA3: JsonObject = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def _sizes(vocab: int, hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, tied: bool) -> JsonObject:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
    }


KNOWN: dict[str, JsonObject] = {
    "Qwen/Qwen2.5-0.5B-Instruct": {**_QWEN25, **_sizes(151_936, 896, 4864, 24, 14, 2, True)},
    "Qwen/Qwen2.5-1.5B-Instruct": {**_QWEN25, **_sizes(151_936, 1536, 8960, 28, 12, 2, True)},
    "Qwen/Qwen2.5-7B-Instruct": {**_QWEN25, **_sizes(152_064, 3584, 18_944, 28, 28, 4, False)},
    "Qwen/Qwen2.5-72B-Instruct": {**_QWEN25, **_sizes(152_064, 8192, 29_568, 80, 64, 8, False)},
    "meta-llama/Llama-3.2-1B-Instruct": {
        **_LLAMA3,
        **_sizes(128_256, 2048, 8192, 16, 32, 8, True),
        "rope_scaling": {**_LLAMA3["rope_scaling"], "factor": 32.0},
    },
    "meta-llama/Llama-3.1-8B-Instruct": {**_LLAMA3, **_sizes(128_256, 4096, 14_336, 32, 32, 8, False)},
    "mistralai/Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral",
        **_sizes(32_768, 4096, 14_336, 32, 32, 8, False),
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    "google/gemma-2-2b-it": {"model_type": "gemma2", **_sizes(256_000, 2304, 9216, 26, 8, 4, True), "head_dim": 256},
    "google/gemma-2-9b-it": {"model_type": "gemma2", **_sizes(256_000, 3584, 14_336, 42, 16, 8, True), "head_dim": 256},
}


def arch_of(path: str, revision: str | None = None) -> Arch:
    """The Arch of a configuration's `model.path`: from the folder's config.json, else from KNOWN, else from the hub.

    Raises UserError if none of them has it.
    """
    if path in KNOWN and not pathlib.Path(path).expanduser().is_dir():
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "config.json"
            file.write_text(json.dumps(KNOWN[path]), encoding="utf-8")
            return models.read_config(file)
    if not is_hub_id(path):
        return models.read_config(local_folder(path, revision))
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return models.read_config(huggingface_hub.hf_hub_download(path, "config.json", revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model.path: {path}: no such folder, and no config.json from the hub: {error}") from error
