"""A plan adds up, and its text and JSON say so."""

import dataclasses
import json

import jax
import pytest

from care_jax import cli, plan
from care_jax.plan import Advice, Plan, Program, targets, text
from care_jax.training.placement import bytes_per_device


def test_a_plan_adds_up_and_says_so(tiny, step, capsys):
    """Compiles the step of the fixture again, which the cache has."""
    target = dataclasses.replace(targets.local(), memory=2**30)
    result = plan.plan(tiny, target, say=lambda line: None)
    train = result.programs[0]
    params = bytes_per_device(step[0].state.params)
    assert train.array_bytes["parameters"] == params
    assert train.array_bytes["optimizer"] == pytest.approx(2 * params, rel=0.01)
    assert train.total == sum(train.array_bytes.values()) + train.temporaries
    assert result.fits
    assert {program.name for program in result.programs} == {"train", "reference", "evaluation"}
    assert {"all-gather", "all-reduce"} & set(train.collectives)
    # Rows x length tokens per microbatch. 2 operations per multiply-add; forward, recomputed, and twice backward: 8 per
    # weight and token.
    blocks = sum(x.size for x in jax.tree.leaves(step[0].state.params["blocks"]) if x.ndim > 2)
    slots = result.microbatches * result.rows * result.row_length
    assert 8 * blocks * slots < train.flops < 20 * blocks * slots
    lines = text.as_text(result)
    assert "fits: " in lines
    assert "all-gather" in lines
    assert json.loads(json.dumps(text.as_json(result)))["fits"] is True


def test_a_run_out_of_memory_says_what_fits(tiny, monkeypatch, capsys):
    from care_jax.training import loop

    def train(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.\nmore")

    def fake_plan(config, target, say):
        program = Program("train", {"parameters": 2 * 10**9}, 0, None, 0, {}, 0.0)
        less = dataclasses.replace(program, array_bytes={"parameters": 10**9})
        nearest = Advice(("batch.microbatch_rows=2",), less, 1)
        target = dataclasses.replace(target, memory=2 * 10**9)
        return Plan(config, target, {"fsdp": 8}, 2, 4, 256, (program,), nearest)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(plan, "plan", fake_plan)
    assert cli.main(["train", "quickstart"]) == 1
    said = capsys.readouterr().err
    assert "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes." in said
    assert "does not fit: 1.86 of 1.86 GiB, 100 % (train)" in said
    assert "the nearest change that fits: batch.microbatch_rows=2" in said
