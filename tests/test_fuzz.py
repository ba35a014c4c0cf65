"""Every configuration either starts or is refused with a message that names a key, never with a traceback.

In this process, up to the point where the step would be compiled. With --slow 500 times, and 20 through the command.
"""

import functools
import json
import random
import re

import jax
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import care_jax
from care_jax import losses, sharding
from care_jax.config import Config
from care_jax.errors import Leakage, UserError
from care_jax.training import loop
from care_jax.training.forward.reference import Reference
from tests.config.test_config import KEYS, PLAIN
from tests.test_end_to_end import care_jax as run_command

# Likely values, right and wrong, of the keys that decide how a run is laid out.
CHOICES = {
    "seed": [0, 7, -1, 2**40],
    "model.path": ["sample", "nowhere", "no/such"],
    "model.init": ["random", "pretrained"],
    "model.dtype": ["float32", "bfloat16", "float16"],
    "model.param_dtype": ["float32", "bfloat16"],
    "model.attention": ["auto", "xla", "xla_chunked", "flash"],
    "model.lora": [None, {}, {"r": 2}, {"target_modules": ["q", "v"]}, {"target_modules": ["nothing"]}, {"r": 0}],
    "data.train.0.path": ["sample", "nowhere.jsonl", "/"],
    "data.train.0.reader": ["care", "preferences", "carre", "tokenized"],
    "data.train.0.cultures": [["chinese"], ["japanese", "arab"], ["klingon"], []],
    "data.train.0.categories": [None, ["norms"], ["nothing"]],
    "data.train.0.limit": [None, {"questions": 3}, {"pairs": 1}, {"tokens": 100}, {"pairs": 1, "tokens": 1}],
    "data.train.0.weight": [1, 0.5, 2, 0],
    "data.train.0.query_language": ["native", "english"],
    "data.eval": [
        [],
        {"fraction": 0.25},
        {"questions": 3},
        {"questions": 10**6},
        {"fraction": 0},
        [{"path": "sample"}],
    ],
    "data.pairs": [{"policy": "all"}, {"min_gap": 10}, {"max_per_question": 1}, {"policy": "random", "min_gap": 3}],
    "data.labels": ["best", {}, {"desirable_min": 10, "undesirable_max": 1}, {"desirable_min": 3}],
    "data.fraction": [1, 0.5, 0.01, 2],
    "data.epochs": [None, 1, 3],
    "data.max_steps": [None, 1, 3],
    "data.max_length": [8, 32, 128, 256, 100000],
    "data.chat_template": ["model", "none", "nowhere.jinja"],
    "data.shuffle": [True, False],
    "batch.unit": ["pair", "group"],
    "batch.reduction": ["pair", "group"],
    "batch.examples": [1, 2, 8, 10**7],
    "batch.row_length": [32, 128, 256, 300],
    "batch.microbatch_rows": [1, 3, 4],
    "batch.packing": [True, False],
    "batch.share_responses": [True, False],
    "batch.share_prompts": [True, False],
    "loss": [{"name": name} for name in losses.names()] + [[{"name": "dpo"}, {"name": "sft", "weight": 0.5}], {}],
    "loss.name": ["dop", "nowhere:loss", "kto", "simpo"],
    "reference.path": [None, "nowhere"],
    "reference.mode": ["precompute", "online"],
    "optimizer.name": ["adamw", "sgd", "lion", "adafactor", "nowhere:rule"],
    "optimizer.max_grad_norm": [None, 1, 0],
    "optimizer.warmup": [0, 0.5, 3, 1.5],
    "optimizer.moment_dtype": ["float32", "bfloat16"],
    "mesh.data": [1, 2, -1],
    "mesh.fsdp": [1, 3, -1],
    "mesh.tensor": [1, 2],
    "checkpoint.best": [None, "eval/loss", "eval/acuracy", "eval/chinese/rewards/accuracies"],
    "checkpoint.minutes": [None, 0, 5],
    "eval_every": [None, 1, 0.5],
    "resume": ["auto", "never", "must"],
    "trackers": [[], ["tensorboard"], ["nowhere"]],
    "profile": [None, {"start": 1, "steps": 1}, {"start": 9}],
}
# Losses with a colon would import modules by name.
ANYTHING = st.sampled_from([key for key in KEYS if key != "output_dir"]).flatmap(
    lambda key: st.tuples(st.just(key), PLAIN)
)
CHOSEN = st.sampled_from(sorted(CHOICES)).flatmap(lambda key: st.tuples(st.just(key), st.sampled_from(CHOICES[key])))
OVERRIDES = st.tuples(st.lists(CHOSEN, max_size=6), st.lists(ANYTHING, max_size=1)).map(
    lambda lists: dict([*lists[0], *lists[1]])
)
# What a message must name: a key, a file, or the data that leave nothing to train on.
NAMES = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*: |nowhere|sample|(data|model|batch|optimizer)\.|holds no|tokenizer")


class WouldStart(Exception):
    """Everything was read, laid out and placed; only the step is not compiled."""


@pytest.fixture(scope="module")
def up_to_compiling(tmp_path_factory):
    """Numbers of new run directories, in a process that neither compiles nor runs a step."""

    def started(*_, **__):
        raise WouldStart

    def no_pass(run, weights, data, forward):
        return Reference(forward, run.config.reference.path is None)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        patch.setattr(loop, "new_state", started)
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:2]))
        patch.setattr(loop, "compute_reference", no_pass)
        yield iter(range(10**6))


def attempt(numbers, overrides):
    """The message with which the configuration is refused; None if it would start."""
    try:
        config = Config.from_any("quickstart", **overrides)
        care_jax.train(Config.from_any(config, output_dir=f"run{next(numbers)}"))
    except WouldStart:
        return None
    except (UserError, Leakage) as refused:
        return str(refused)
    raise AssertionError("it neither started nor was refused")


def is_clear(message):
    return message is None or (NAMES.search(message) is not None and len(message) < 4000)


def fuzz(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


@example({"mesh.fsdp": 1, "mesh.data": 2, "mesh.tensor": 2})
@example({"resume": "must"})
@given(OVERRIDES)
@fuzz(15)
def test_a_configuration_starts_or_is_refused(up_to_compiling, overrides):
    assert is_clear(attempt(up_to_compiling, overrides))


@pytest.mark.slow
@given(OVERRIDES)
@fuzz(500)
def test_five_hundred_configurations(up_to_compiling, overrides):
    assert is_clear(attempt(up_to_compiling, overrides))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_through_the_command(tmp_path, seed):
    draw = random.Random(seed)
    keys = draw.sample(sorted(CHOICES), 3)
    words = [f"{key}={json.dumps(draw.choice(CHOICES[key]))}" for key in keys]
    done = run_command(
        "train", "quickstart", "data.epochs=1", "data.max_steps=1", *words, "output_dir=run", cwd=tmp_path
    )
    assert done.returncode in (0, 2, 3), (words, done.stderr)
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        assert is_clear(done.stderr.split("care-jax: ", 1)[1])
