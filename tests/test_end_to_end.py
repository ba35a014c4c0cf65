"""The real command on the packaged sample: a run, its files, what a kill leaves, and what a user gets wrong."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

# One short run of the quickstart's own recipe: every part of it, in a few seconds.
SHORT = ["data.max_steps=6", "checkpoint.every=2", "eval_every=3", "data.train.0.cultures=[chinese]"]


def environment():
    """One device, and the compiled programs of this test session."""
    return os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def command(*arguments):
    return [str(pathlib.Path(sys.executable).with_name("care-jax")), *map(str, arguments)]


def care_jax(*arguments, cwd):
    return subprocess.run(command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)


def numbers(path):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    clock = ("_seconds", "_per_second", "_bytes")
    return [{k: v for k, v in line.items() if not k.endswith(clock) and k != "mfu"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder in which the short run went through, and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    done = care_jax("train", "quickstart", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_run_leaves_all_its_files(finished):
    folder, done = finished
    run = folder / "runs" / "quickstart"
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "manifest.json", "data_report.json", "rejected_rows.jsonl", "metrics.jsonl"}
    assert names >= expected | {"checkpoints", "export", "tensorboard", "reference"}
    assert "held out" in done.stderr
    assert done.stderr.count("train step compiled") == 1
    report = json.loads((run / "data_report.json").read_text())
    assert report["rows"] == report["responses"] + sum(report["dropped"].values())


def test_metrics_have_the_agreed_names(finished):
    run = finished[0] / "runs" / "quickstart"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "eval/loss" in line]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in evaluations] == [0, 3, 6]
    assert list(steps[0])[:10] == [
        *("step", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "grad_norm", "learning_rate"),
    ]
    assert {"tokens", "pairs", "packing_efficiency", "tokens_per_second", "mfu"} <= set(steps[0])
    assert math.isclose(steps[0]["loss"], math.log(2), abs_tol=1e-4)
    assert evaluations[0]["eval/rewards/accuracies"] is None
    assert evaluations[0]["eval/logps/accuracies"] is not None
    assert evaluations[-1]["eval/chinese/rewards/accuracies"] is not None
    assert evaluations[-1]["eval/literacy/rewards/accuracies"] is not None


def test_running_again_says_finished_and_writes_a_missing_export(finished):
    folder, _ = finished
    run = folder / "runs" / "quickstart"
    before = load_file(run / "export" / "model.safetensors")
    (run / "export").rename(run / "aside")
    done = care_jax("train", "quickstart", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stderr
    after = load_file(run / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def kill_in_the_middle(folder, how):
    """Starts the short run and sends it a signal once its first checkpoint is there."""
    run = folder / "runs" / "quickstart"
    started = subprocess.Popen(
        command("train", "quickstart", *SHORT), cwd=folder, env=environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "2").exists():
        assert started.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.send_signal(how)
    return started.wait(timeout=120)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_a_stopped_run_goes_on_to_the_same_bits(finished, tmp_path, how, status):
    assert kill_in_the_middle(tmp_path, how) == status
    done = care_jax("train", "quickstart", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    whole, resumed = finished[0] / "runs" / "quickstart", tmp_path / "runs" / "quickstart"
    assert numbers(resumed) == numbers(whole)
    expected = load_file(whole / "export" / "model.safetensors")
    for name, value in load_file(resumed / "export" / "model.safetensors").items():
        np.testing.assert_array_equal(value, expected[name])


def test_another_configuration_does_not_go_on_in_the_same_folder(finished):
    done = care_jax("train", "quickstart", *SHORT, "loss.beta=0.3", cwd=finished[0])
    assert done.returncode == 2
    assert "loss.beta: 0.1 then, 0.3 now" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data.train.0.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["loss.name=dop"], "dpo"),
        (["data.train.0.reader=carre"], "care"),
        (["batch.example=4"], "examples"),
        (["batch.row_length=16", "data.max_length=16"], "data.max_length"),
        (["model.path=.", "model.init=pretrained"], "."),
        (["batch.row_length=64", "data.max_length=512"], "row_length"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(tmp_path, arguments, named):
    done = care_jax("train", "quickstart", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
