"""The types of values, and the messages for those that do not fit."""

import pytest
import yaml

from care_jax import config
from tests.config.test_config import MINIMAL, refused


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "0.000001", "'1e-6'", "1.0e-6"])
def test_numbers_may_be_text(recipe, text):
    path = recipe(yaml.safe_dump(MINIMAL) + f"optimizer: {{learning_rate: {text}}}\nloss: {{beta: {text}}}\n")
    one = config.load(path, overrides=[f"optimizer.eps={text}"])
    assert one.optimizer.learning_rate == one.loss.hyperparameters["beta"] == one.optimizer.eps == 1e-6


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("optimizer.learning_rat", 1, ["optimizer.learning_rat", "unknown key", "did you mean 'learning_rate'"]),
        ("learning_rate", 1, ["learning_rate", "did you mean 'optimizer.learning_rate'"]),
        ("data.train.0.culture", [], ["data.train.0.culture", "did you mean 'cultures'"]),
        ("data.train.0.limit", {"rows": 1}, ["data.train.0.limit.rows", "questions, pairs, tokens"]),
        ("data.train.0.limit", {"pairs": 1, "tokens": 2}, ["data.train.0.limit", "pairs and tokens", "exactly one"]),
        ("data.train", [], ["data.train", "[]", "list of sources"]),
        ("data.train", {"path": "x"}, ["data.train", "list of sources"]),
        ("data.train.0.path", "", ["data.train.0.path", "''", "text"]),
        ("data.train.path", "x", ["data.train is a list", "data.train.0"]),
        ("data.train.3.path", "x", ["data.train.3.path", "data.train.0 to data.train.0"]),
        ("data.train.0.weight", 0, ["data.train.0.weight", "above 0"]),
        ("data.train.0.cultures", "arab", ["data.train.0.cultures", "'arab'", "a list"]),
        ("data.train.0.relations", ["natve"], ["data.train.0.relations.0", "did you mean 'native'"]),
        ("data.eval", "none", ["data.eval", "'none'", "[] for none"]),
        ("data.eval", {"fraction": 1.5}, ["data.eval.fraction", "1.5", "below 1"]),
        ("data.eval", [{"reader": "care"}], ["data.eval.0.path", "nothing"]),
        ("data.eval", [{"path": "x", "limits": 3}], ["data.eval.0.limits", "did you mean 'limit'"]),
        ("data.labels", {"desirable_min": 3}, ["data.labels.undesirable_max", "less than desirable_min"]),
        ("data.epochs", None, ["data.epochs", "data.max_steps"]),
        ("data.epochs", 1.5, ["data.epochs", "1.5", "a whole number"]),
        ("data.fraction", 0, ["data.fraction", "above 0"]),
        ("data.max_length", 4096, ["data.max_length", "4096", "batch.row_length", "2048"]),
        ("data.shuffle", 1, ["data.shuffle", "1", "true or false"]),
        ("batch.examples", True, ["batch.examples", "True", "a whole number"]),
        ("batch.examples", 0, ["batch.examples", "0", "at least 1"]),
        ("batch.unit", "question", ["batch.unit", "'question'", "pair or group"]),
        ("model", "sample", ["model", "'sample'", "a mapping of path"]),
        ("model.dtype", "bf16", ["model.dtype", "'bf16'", "float32 or bfloat16"]),
        ("model.lora", True, ["model.lora", "True", "a mapping of r, alpha"]),
        ("model.lora.target_modules", "al", ["model.lora.target_modules", "did you mean 'all'"]),
        ("model.revision", 7, ["model.revision", "7", "in quotes"]),
        ("optimizer.learning_rate", "fast", ["optimizer.learning_rate", "'fast'", "a number"]),
        ("optimizer.learning_rate", float("nan"), ["optimizer.learning_rate", "nan", "a number"]),
        ("optimizer.learning_rate", 10**400, ["optimizer.learning_rate", "a number"]),
        ("optimizer.name", "adam", ["optimizer.name", "did you mean 'adamw'", "module:function"]),
        ("optimizer", {"name": "sgd", "b1": 0.5}, ["optimizer.b1", "0.5", "sgd does not use it", "0.9"]),
        ("optimizer.warmup", 1.5, ["optimizer.warmup", "1.5", "whole number of steps"]),
        ("checkpoint.every", 0, ["checkpoint.every", "above 0"]),
        ("mesh.data", -1, ["mesh.fsdp", "-1", "mesh.data"]),
        ("mesh.tensor", 0, ["mesh.tensor", "0", "positive"]),
        ("trackers", ["wandbb"], ["trackers.0", "did you mean 'wandb'"]),
        ("resume", "always", ["resume", "'always'", "auto or never or must"]),
        ("loss", "kto", ["loss", "'kto'", "{name: dpo"]),
        ("loss", [], ["loss", "[]", "list"]),
        ("loss.name", "dop", ["loss.name", "'dop'", "did you mean 'dpo'"]),
        ("loss.name", "no_such_module:f", ["loss.name", "no_such_module"]),
        ("loss.bta", 1, ["loss.bta", "did you mean 'beta'"]),
        ("loss.beta", "x", ["loss.beta", "'x'"]),
        ("loss.beta", "inf", ["loss.beta", "'inf'", "finite"]),
        ("loss", {"name": "simpo", "gamma": 1.4}, ["loss.gamma", "gamma_beta_ratio"]),
        ("loss", [{"name": "dpo"}, {"name": "sft", "bta": 1}], ["loss.1.bta", "'sft'"]),
        ("loss", [{"name": "dpo"}, {"name": "kto"}], ["loss", "dpo takes pairs", "kto takes unpaired"]),
        ("loss", {"name": "dpo", "weight": 0}, ["loss.weight", "0"]),
        ("seed", -1, ["seed", "-1", "at least 0"]),
        ("profile", {"start": 3}, ["profile.steps", "nothing"]),
    ],
)
def test_a_mistake_names_key_found_and_expected(key, value, parts):
    text = refused(**{key: value})
    for part in parts:
        assert part in text
    assert text.count("\n") == 0
