"""A run saved on eight devices resumes on two: the same units in the same order, the same losses to 1e-5."""

import functools
import shutil

import jax
import pytest

import care_jax
from care_jax import sharding
from care_jax.data.rows.files import SAMPLE
from care_jax.errors import UserError

CONFIG = {
    "model.path": "sample",
    "model.init": "random",
    "model.dtype": "float32",
    "model.remat": "none",
    "loss": {"name": "simpo"},  # no reference pass to compile; tests/test_processes.py has one on several processes
    "data.eval": [],
    "data.max_steps": 4,
    "eval_every": None,
    "data.max_length": 128,
    "batch": {"unit": "pair", "examples": 8, "row_length": 128, "microbatch_rows": 8},
    "optimizer.learning_rate": 1e-3,
    "checkpoint": {"every": 2, "keep": 2},
    "trackers": [],
}
MAKE_MESH = sharding.make_mesh


def test_eight_devices_then_two(tmp_path, monkeypatch, capsys):
    run, data = tmp_path / "run", tmp_path / "rated.jsonl"
    shutil.copy(SAMPLE / "care_sample.jsonl", data)
    source = [{"reader": "care", "path": str(data), "cultures": ["chinese"]}]

    def train(devices, **changes):
        monkeypatch.setattr(sharding, "make_mesh", functools.partial(MAKE_MESH, devices=jax.devices()[:devices]))
        return care_jax.train({}, **CONFIG, **{"data.train": source, "output_dir": str(run), **changes}).metrics

    with pytest.raises(UserError, match=r"resume: must, but .* holds no checkpoint"):
        train(8, resume="must")
    whole = train(8)
    shutil.rmtree(run / "checkpoints" / "4")
    shutil.rmtree(run / "export")
    capsys.readouterr()

    # A resume that would train on something else is refused.
    with pytest.raises(UserError, match=r"resume: never, but .* holds checkpoints already"):
        train(2, resume="never")
    with pytest.raises(UserError, match=r"loss.beta: 2.0 then, 0.5 now"):
        train(2, **{"loss.beta": 0.5})
    (run / "config.yaml").unlink()  # the checkpoint holds the configuration too
    with pytest.raises(UserError, match=r"batch.examples: 8 then, 4 now"):
        train(2, **{"batch.examples": 4})
    content = data.read_bytes()
    data.write_bytes(content.replace("。".encode(), "！".encode(), 1))
    with pytest.raises(UserError, match=r"read something else: data file .*rated.jsonl: sha256 \w+ then, \w+ now"):
        train(2)
    data.write_bytes(content)

    # Other devices and rows are allowed.
    resumed = train(2, **{"batch.microbatch_rows": 4, "mesh.data": 2, "checkpoint.keep": 1, "resume": "must"})
    messages = capsys.readouterr().err
    assert "resumed at step 2 of 4" in messages
    assert "bitwise equality with an uninterrupted run ends at step 2: devices: 8 then, 2 now" in messages
    assert "batch.microbatch_rows: 8 then, 4 now" in messages
    assert [line["step"] for line in resumed] == [1, 2, 3, 4]
    for one, other in zip(resumed, whole):
        assert one["pairs"] == other["pairs"]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["logps/chosen"] == pytest.approx(other["logps/chosen"], rel=1e-5)
