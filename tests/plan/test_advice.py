"""The nearest change that fits."""

import dataclasses
import functools

import pytest

from care_jax.config import Config
from care_jax.hardware import MEMORY_FRACTION
from care_jax.plan import Program, advice, known, targets
from care_jax.plan.programs import state_bytes
from care_jax.plan.shapes import shapes_of


def test_the_nearest_change_is_compiled_and_fits(tiny, monkeypatch):
    """With functions in place of the compiler, so that nothing is compiled."""
    target = dataclasses.replace(targets.local(), memory=10**9)
    seen = []

    def compile_train(shapes, say):
        rows = shapes.batch_shape.rows
        seen.append((shapes.config.model.remat, rows))
        return Program("train", {"parameters": 0}, rows * 5 * 10**7, None, 0, {}, 0.0), None

    def compile_forward(shapes, say):
        passes.append(Program("evaluation", {"parameters": 0}, shapes.batch_shape.rows * 6 * 10**7, None, 0, {}, 0.0))
        return passes[-1:]

    passes = []
    monkeypatch.setattr(advice, "compile_train", compile_train)
    monkeypatch.setattr(advice, "compile_forward", compile_forward)
    changed = Config.from_any(tiny, **{"model.remat": "none"})
    result = advice.nearest_that_fits(changed, target, known.arch_of(tiny.model.path), lambda line: None)
    assert result.changes == ("model.remat=full", "batch.microbatch_rows=8")
    assert seen == [("full", 64), ("full", 32), ("full", 16), ("full", 8)]
    assert result.program is passes[-1], "with 16 rows the train step fits, the evaluation does not"
    assert result.program.total <= MEMORY_FRACTION * 10**9


def test_what_cannot_fit_is_not_compiled(tiny, monkeypatch):
    target = dataclasses.replace(targets.local(), memory=10**5)
    monkeypatch.setattr(advice, "compile_train", functools.partial(pytest.fail, "compiled"))
    result = advice.nearest_that_fits(tiny, target, known.arch_of(tiny.model.path), lambda line: None)
    assert (result.changes, result.tried) == (None, 0)


def test_copies_of_the_state_are_spread_before_anything_that_changes_numbers(tiny, monkeypatch):
    """With data=8 the state is there eight times: the first advice is to shard it."""
    target = targets.local()
    copied = Config.from_any(tiny, **{"mesh": {"data": 8, "fsdp": 1, "tensor": 1}})

    def compile_train(shapes, say):
        return Program("train", state_bytes(shapes), 0, None, 0, {}, 0.0), None

    monkeypatch.setattr(advice, "compile_train", compile_train)
    monkeypatch.setattr(advice, "compile_forward", lambda shapes, say: [])
    copied_bytes = sum(state_bytes(shapes_of(copied, target)).values())
    target = dataclasses.replace(target, memory=copied_bytes // 2)
    result = advice.nearest_that_fits(copied, target, known.arch_of(tiny.model.path), lambda line: None)
    assert result.changes == ("mesh.data=1", "mesh.fsdp=-1")
    # Six devices do not divide the width of 128, so only their rows become fewer.
    six = dataclasses.replace(target, devices=target.devices[:6], memory=2**40)
    copied = Config.from_any(copied, **{"mesh.data": 6, "batch.microbatch_rows": 24})
    result = advice.nearest_that_fits(copied, six, known.arch_of(tiny.model.path), lambda line: None)
    assert result.changes == ("batch.microbatch_rows=12",)


def test_no_change_is_tried_twice(tiny, monkeypatch):
    rounded = {"optimizer.moment_dtype": "bfloat16", "optimizer.accumulate_dtype": "bfloat16"}
    recipe = Config.from_any(tiny, **rounded)
    target = dataclasses.replace(targets.local(), memory=2**40)
    tried = []
    program = Program("train", {"parameters": 2**41}, 0, None, 0, {}, 0.0)
    monkeypatch.setattr(advice, "compile_train", lambda shapes, say: (program, None))
    advice.nearest_that_fits(recipe, target, known.arch_of(tiny.model.path), tried.append)
    assert len(tried) > 3
    assert not any("bfloat16" in line for line in tried), "it is in bfloat16 already"
