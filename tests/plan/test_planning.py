"""A plan adds up, and its text and JSON say so."""

import dataclasses
import json

import jax
import pytest

from care_jax import cli, plan
from care_jax.plan import Advice, Plan, Program, targets, text
from care_jax.training.memory import bytes_per_device


def test_a_plan_adds_up_and_says_so(tiny, step, capsys):
    """On the compiled step of the fixture: the cache holds it."""
    target = dataclasses.replace(targets.local(), memory=2**30)
    made = plan.plan(tiny, target, say=lambda line: None)
    train = made.programs[0]
    params = bytes_per_device(step[0].state.params)
    assert train.held["parameters"] == params
    assert train.held["optimizer"] == pytest.approx(2 * params, rel=0.01)
    assert train.total == sum(train.held.values()) + train.temporaries
    assert made.fits
    assert {program.name for program in made.programs} == {"train", "reference", "evaluation"}
    assert {"all-gather", "all-reduce"} & set(train.collectives)
    # Rows x length tokens a microbatch; 2 a multiply-add, forward, recomputed and twice backward: 8 a weight and token.
    blocks = sum(x.size for x in jax.tree.leaves(step[0].state.params["blocks"]) if x.ndim > 2)
    slots = made.microbatches * made.rows * made.row_length
    assert 8 * blocks * slots < train.flops < 20 * blocks * slots
    shown = text.as_text(made)
    assert "fits: " in shown
    assert "all-gather" in shown
    assert json.loads(json.dumps(text.as_json(made)))["fits"] is True


def test_a_run_out_of_memory_is_told_what_fits(tiny, monkeypatch, capsys):
    from care_jax.training import loop

    def train(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.\nmore")

    def planned(config, target, say):
        program = Program("train", {"parameters": 2 * 10**9}, 0, None, 0, {}, 0.0)
        less = dataclasses.replace(program, held={"parameters": 10**9})
        found = Advice(("batch.microbatch_rows=2",), less, 1)
        target = dataclasses.replace(target, memory=2 * 10**9)
        return Plan(config, target, {"fsdp": 8}, 2, 4, 256, (program,), found)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(plan, "plan", planned)
    assert cli.main(["train", "quickstart"]) == 1
    said = capsys.readouterr().err
    assert "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes." in said
    assert "does not fit: 1.86 of 1.86 GiB, 100 % (train)" in said
    assert "the nearest change that fits: batch.microbatch_rows=2" in said
