"""Writes tests/golden/models/: tiny random transformers models of every family, and what they compute.

    PYTHONPATH=. python tests/make_golden_models.py        (in the parity extra: torch, transformers)

Each folder has config.json, model.safetensors and golden.npz: tokens [2, T], lengths [2] (padded on the right),
logits [2, T, V] of the padded batch in float32, prompt, first, second: ids of a
prompt and two responses, and logps [2], their summed log-probabilities.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

GOLDEN = pathlib.Path(__file__).parent / "golden" / "models"
VOCAB, LENGTH = 64, 24

_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_GEMMA = _BASE | {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}

# Windows are shorter than the sequence; head sizes differ from hidden/heads if the family allows it.
CONFIGS = {
    "llama": _BASE
    | {"model_type": "llama", "rope_theta": 10000.0, "head_dim": 8, "attention_bias": True, "mlp_bias": True},
    "llama3": _BASE
    | {
        "model_type": "llama",
        "head_dim": 12,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": _BASE | {"model_type": "mistral", "rope_theta": 10000.0, "head_dim": 12, "sliding_window": 5},
    "qwen2": _BASE
    | {
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "intermediate_size": 24,
    },
    "qwen3": _BASE | {"model_type": "qwen3", "rope_theta": 1000000.0, "head_dim": 12, "tie_word_embeddings": True},
    "gemma2": _GEMMA
    | {
        "model_type": "gemma2",
        "num_hidden_layers": 3,
        "rope_theta": 10000.0,
        "query_pre_attn_scalar": 24,
        "sliding_window": 5,
        # Small caps, so that tests notice if one is missing.
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": _GEMMA
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "intermediate_size": 16,
        "head_dim": 8,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "query_pre_attn_scalar": 24,
        "sliding_window": 5,
        "sliding_window_pattern": 6,
    },
}


def make_model(config: dict, seed: int = 0) -> torch.nn.Module:
    """A random float32 model of a config.json; norms and biases are random too."""
    torch.manual_seed(seed)
    settings = {key: value for key, value in json.loads(json.dumps(config)).items() if key != "model_type"}
    hf_config = transformers.AutoConfig.for_model(config["model_type"], **settings)
    model = transformers.AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                centre = 0.0 if config["model_type"].startswith("gemma") else 1.0
                weight.copy_(centre + 0.3 * torch.randn_like(weight))
            else:
                weight.copy_(0.25 * torch.randn_like(weight))
    return model.eval()


def shared_example(seed: int = 7) -> tuple[np.ndarray, list[np.ndarray]]:
    """Token ids of a prompt and two responses of different lengths."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, VOCAB, 9), [rng.integers(1, VOCAB, 8), rng.integers(1, VOCAB, 5)]


def logps(model: torch.nn.Module, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """The summed log-probability of a response, alone in its row."""
    ids = torch.tensor(np.concatenate([prompt, response]))[None]
    table = torch.log_softmax(model(ids).logits.float(), -1)[0, len(prompt) - 1 : -1]
    return table[torch.arange(len(response)), torch.tensor(response)].sum()


def main() -> None:
    for family, config in CONFIGS.items():
        model = make_model(config)
        folder = GOLDEN / family
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        weights = {name: w.detach().contiguous() for name, w in model.named_parameters()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        tokens = np.random.default_rng(1).integers(1, VOCAB, (2, LENGTH))
        lengths = np.array([LENGTH, LENGTH - 7])
        mask = torch.tensor(np.arange(LENGTH)[None] < lengths[:, None])
        prompt, responses = shared_example()
        with torch.no_grad():
            logits = model(torch.tensor(tokens), attention_mask=mask.long()).logits.float().numpy()
            sums = [float(logps(model, prompt, response)) for response in responses]
        np.savez_compressed(
            folder / "golden.npz",
            tokens=tokens.astype(np.int32),
            lengths=lengths.astype(np.int32),
            logits=logits.astype(np.float32),
            logps=np.array(sums, np.float32),
            prompt=prompt.astype(np.int32),
            first=responses[0].astype(np.int32),
            second=responses[1].astype(np.int32),
        )
        for path in folder.iterdir():
            path.chmod(0o644)
        print(family, sum(path.stat().st_size for path in folder.iterdir()), "bytes")


if __name__ == "__main__":
    main()
