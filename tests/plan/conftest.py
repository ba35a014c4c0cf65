"""A small model that is only a config.json, and its compiled train step."""

import json

import pytest

from care_jax.config import Config
from care_jax.plan import targets
from care_jax.plan.programs import compile_train
from care_jax.plan.shapes import shapes_of

TINY = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A recipe whose model is only a config.json."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return Config.from_any(
        "quickstart",
        **{
            "model": {"path": str(folder), "dtype": "bfloat16", "remat": "full"},
            "data.train": [{"reader": "care", "path": "nowhere.jsonl"}],
            "batch": {"examples": 64, "row_length": 256, "microbatch_rows": 64},
            "mesh": {"data": 1, "fsdp": 4, "tensor": 2},
        },
    )


@pytest.fixture(scope="session")
def step(tiny):
    """(shapes, compiled train step) on eight devices of this host."""
    shapes = shapes_of(tiny, targets.local())
    return shapes, compile_train(shapes, lambda line: None)[1]
