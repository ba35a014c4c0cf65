"""The models whose config.json comes with the package."""

import pathlib

import pytest

import care_jax
from care_jax import config
from care_jax.hardware import CHIPS
from care_jax.models.arch import num_params
from care_jax.plan import known, targets


def test_the_known_models_have_their_published_size():
    billions = {
        "Qwen/Qwen2.5-0.5B-Instruct": 0.494,
        "Qwen/Qwen2.5-1.5B-Instruct": 1.544,
        "Qwen/Qwen2.5-7B-Instruct": 7.616,
        "Qwen/Qwen2.5-72B-Instruct": 72.706,
        "meta-llama/Llama-3.2-1B-Instruct": 1.236,
        "meta-llama/Llama-3.1-8B-Instruct": 8.030,
        "mistralai/Mistral-7B-Instruct-v0.3": 7.248,
        "google/gemma-2-2b-it": 2.614,
        "google/gemma-2-9b-it": 9.242,
    }
    assert billions.keys() == known.KNOWN.keys()
    for name, size in billions.items():
        assert num_params(known.arch_of(name)) / 1e9 == pytest.approx(size, abs=6e-4), name


def test_every_shipped_recipe_names_a_known_model_and_every_machine_a_target():
    root = pathlib.Path(care_jax.__file__).parents[1] / "configs"
    for recipe in root.glob("*.yaml"):
        path = config.load(recipe).model.path
        assert path == "sample" or path in known.KNOWN, recipe
    machines = {path.stem for path in (root / "machines").glob("*.yaml")}
    assert machines - {"cpu"} == set(targets.MACHINES)
    assert all(card is None or card in CHIPS for _, card in targets.MACHINES.values())
