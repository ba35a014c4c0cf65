"""If a number is not finite, the update is skipped, and step, questions and the first such tensor are named."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest

from care_jax import losses
from care_jax.training.checks.nonfinite import Diagnosis
from care_jax.training.errors import Diverged
from care_jax.training.objective import make_objective
from care_jax.training.step import init_state
from tests.training.batches import groups, plain_batch, tiny_model
from tests.training.test_loop import run

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model, params = tiny_model(tmp_path_factory.mktemp("tiny"))
    batch = jax.tree.map(jnp.asarray, plain_batch([groups(2), groups(2, seed=1)]))
    return model, params, batch


def first(tiny, change, loss=losses.dpo):
    model, params, batch = tiny
    params, batch = change(params, batch)
    return Diagnosis(model, make_objective(loss)).first_nonfinite(init_state(params, optax.sgd(1.0)), batch, 0.0)


def scaled(params, name, layer, factor):
    blocks = params["blocks"]
    weight = blocks["mlp"][name]["weight"]
    mlp = {**blocks["mlp"], name: {"weight": weight.at[layer].multiply(factor)}}
    return {**params, "blocks": {**blocks, "mlp": mlp}}


def test_a_weight_is_named(tiny):
    finding = first(tiny, lambda params, batch: (scaled(params, "up", 1, jnp.nan), batch))
    assert finding.tensor == "the weight params.blocks.mlp.up.weight"


def test_a_layer_is_named(tiny):
    finding = first(tiny, lambda params, batch: (scaled(scaled(params, "up", 1, 1e30), "gate", 1, 1e30), batch))
    assert finding.tensor == "the hidden state after layer 2 of 2"
    assert finding.place is not None


def test_a_reference_is_named(tiny):
    def change(params, batch):
        return params, batch.replace(ref_logps=batch.ref_logps.at[1, 2].set(jnp.inf))

    finding = first(tiny, change)
    assert (finding.tensor, finding.place) == ("the reference's log-probability of a response", (1, 2))


def spiked(chosen_logps, rejected_logps):
    """Finite, but its gradient is not: that of a square root at 0."""
    return jnp.sqrt(jnp.maximum(chosen_logps - rejected_logps, 0) * 0), {}


def test_a_gradient_is_named(tiny):
    finding = first(tiny, lambda params, batch: (params, batch), spiked)
    assert finding.tensor.startswith("the gradient of ")
    assert "microbatch 1; the loss is finite" in finding.tensor


@pytest.mark.slow  # its parts are tested above; this is all of them together
def test_a_run_that_diverges(tmp_path, capsys):
    with pytest.raises(Diverged, match=r"step 3: 2 updates in a row .*first non-finite tensor: the .*last good"):
        run(
            tmp_path,
            loss={"name": "simpo"},
            **{
                "optimizer.learning_rate": 1e25,
                "optimizer.schedule": "constant",
                "optimizer.warmup": 0,
                "nonfinite.max_consecutive": 2,
                "data.max_steps": 8,
                "checkpoint.every": 1,
            },
        )
    stderr = capsys.readouterr().err
    assert "step 2: loss or gradient not finite, update skipped (1 in a row). First non-finite tensor: the " in stderr
    assert "Questions of the step: '" in stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert all(line["questions"] for line in lines)
