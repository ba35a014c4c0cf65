"""If a number is not finite, the update is skipped, and step, questions and the first such tensor are named."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest

from care_jax import losses, sharding
from care_jax.config import Config
from care_jax.data.chat import load_tokenizer
from care_jax.stopping import StopSignal
from care_jax.textfiles import read_lines
from care_jax.training.batches import StepBatch
from care_jax.training.checks.nonfinite import Diagnosis, Finding, SkippedUpdates
from care_jax.training.context import RunContext
from care_jax.training.data import prepare
from care_jax.training.errors import Diverged
from care_jax.training.objective import make_objective
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import RunDirectory
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


def test_skipped_updates_name_the_question_and_end_the_run(tiny, tmp_path, capsys, monkeypatch):
    model, params, arrays = tiny
    changes = {"data.eval": [], "nonfinite.max_consecutive": 2, "trackers": [], "output_dir": str(tmp_path)}
    config = Config.from_any("quickstart", **changes)
    objective = make_objective(losses.dpo)
    data = prepare(config, load_tokenizer("sample"), objective, tmp_path)
    responses = data.source.plan(1).responses  # of step 2
    place = int(responses.microbatch[-1]), int(responses.slot[-1])
    monkeypatch.setattr(Diagnosis, "first_nonfinite", lambda *_: Finding("the hidden state", place))
    mesh = sharding.make_mesh(1, 1, 1)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    context = RunContext(config, objective, mesh, RunDirectory(tmp_path, tmp_path), checkpoints, StopSignal())
    updates = SkippedUpdates(context, model, data)
    batch, state = StepBatch(2, arrays, {}, 1.0), init_state(params, optax.sgd(1.0))
    updates.report(batch, 1, 0.0, state)
    culprit = data.corpus.key(int(responses.question[-1]))
    assert f"tensor: the hidden state, in {culprit[:60]!r}. Questions of the step: " in capsys.readouterr().err
    with pytest.raises(Diverged, match=r"step 2: 2 updates in a row .*tensor: the hidden state"):
        updates.report(batch, 2, 0.0, state)
    first_line, _ = read_lines(tmp_path / "nonfinite.jsonl")
    assert (first_line["step"], first_line["in"], first_line["questions"][0]) == (2, culprit, culprit)
    keys = {data.corpus.key(unit.question) for unit in data.source.units(1)}
    assert sorted(first_line["questions"]) == sorted(keys), "each once"


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
