"""The real command on the packaged sample: a run, its files, kills, and mistakes of a user."""

import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import care_jax as care_jax_package

# One short run of the quickstart's own recipe: every part of it, in a few seconds.
SHORT = ["data.max_steps=6", "checkpoint.every=2", "eval_every=3", "data.train.0.cultures=[chinese]"]


SECRETS = {name: f"secret-{name.lower()}-1f0e9d" for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY")}


def environment():
    """One device, this test session's compilation cache, and keys that no file of a run may hold."""
    return os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | SECRETS


def command(*arguments):
    return [str(pathlib.Path(sys.executable).with_name("care-jax")), *map(str, arguments)]


def care_jax(*arguments, cwd):
    return subprocess.run(command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)


def numbers(path):
    """Returns the lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    clock = ("_seconds", "_per_second", "_bytes")
    return [{k: v for k, v in line.items() if not k.endswith(clock) and k != "mfu"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the finished short run, and the command's output."""
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


def test_no_key_of_the_environment_is_left_anywhere(finished):
    folder, done = finished
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for secret in SECRETS.values():
        assert secret not in done.stdout + done.stderr
        for path in files:
            assert secret.encode() not in path.read_bytes(), path


def test_a_manifest_is_enough_to_run_it_again(finished, tmp_path):
    """The repeated run is equal bit for bit; if a file that was read has changed, it is refused."""
    run = finished[0] / "runs" / "quickstart"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"][0]["licence"] == "MIT"
    assert manifest["model"]["path"] == "sample"
    done = care_jax("train", "--from-manifest", run / "manifest.json", "output_dir=again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    same_end(tmp_path / "again", run)

    manifest["identity"]["tokenizer"] = "0" * 64
    manifest["identity"]["data"] = dict.fromkeys(manifest["identity"]["data"], "1" * 64)
    (tmp_path / "other.json").write_text(json.dumps(manifest))
    done = care_jax("train", "--from-manifest", "other.json", "output_dir=other", cwd=tmp_path)
    assert done.returncode == 2
    assert "the run of other.json read something else: data file " in done.stderr
    assert "the tokenizer or chat template: 000000000000 then" in done.stderr
    assert not (tmp_path / "other" / "manifest.json").exists()
    done = care_jax("train", "--from-manifest", run / "config.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "not the manifest.json of a run" in done.stderr


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


def stop_when(folder, how, there):
    """Starts the short run, sends it a signal once a file matching `there` exists, and returns its exit status."""
    run = folder / "runs" / "quickstart"
    started = subprocess.Popen(
        command("train", "quickstart", *SHORT), cwd=folder, env=environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not any(run.glob(there)):
        assert started.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    started.send_signal(how)
    return started.wait(timeout=120)


def same_end(resumed, uninterrupted):
    assert numbers(resumed) == numbers(uninterrupted)
    expected = load_file(uninterrupted / "export" / "model.safetensors")
    for name, value in load_file(resumed / "export" / "model.safetensors").items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_a_stopped_run_resumes_bit_for_bit(finished, tmp_path, how, status):
    assert stop_when(tmp_path, how, "checkpoints/2") == status
    done = care_jax("train", "quickstart", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    same_end(tmp_path / "runs" / "quickstart", finished[0] / "runs" / "quickstart")


@pytest.mark.slow
@pytest.mark.parametrize(
    "there",
    [
        "reference/*",  # before and in the reference pass
        "reference/*/part*",  # between the reference and the first step
        "checkpoints/2*tmp*",  # in the middle of the first save
        "checkpoints/6*",  # in the middle of the last
        "checkpoints/6",
        ".export*",  # in the middle of the export
    ],
)
def test_a_kill_at_an_odd_moment_changes_nothing(finished, tmp_path, there):
    uninterrupted = finished[0] / "runs" / "quickstart"
    assert stop_when(tmp_path, signal.SIGKILL, there) == -signal.SIGKILL
    done = care_jax("train", "quickstart", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    same_end(tmp_path / "runs" / "quickstart", uninterrupted)


def test_another_configuration_cannot_resume_in_the_same_folder(finished):
    done = care_jax("train", "quickstart", *SHORT, "loss.beta=0.3", cwd=finished[0])
    assert done.returncode == 2
    assert "loss.beta: 0.1 then, 0.3 now" in done.stderr
    assert "Traceback" not in done.stderr


MISTAKES = {
    "a missing file": (["data.train.0.path=nowhere.jsonl"], "no such file or folder: nowhere.jsonl"),
    "an unknown loss": (["loss.name=dop"], "unknown loss 'dop' (did you mean 'dpo'?)"),
    "an unknown reader": (["data.train.0.reader=carre"], "found 'carre' (did you mean 'care'?)"),
    "an unknown key": (["batch.example=4"], "batch.example: unknown key (did you mean 'examples'?)"),
    "a wrong type": (["optimizer.learning_rate=fast"], "optimizer.learning_rate"),
    "a row shorter than an example": (["batch.row_length=64", "data.max_length=512"], "data.max_length: found 512"),
    "nothing after filtering": (["data.pairs.min_gap=10"], "no unit is left to train on"),
    "no safetensors": (["model.path=folder", "model.init=pretrained"], "safetensors"),
    "an unknown family": (["model.path=family"], "model_type 'mamba' is not supported"),
    "an optimizer that is not there": (["optimizer.name=nowhere:rule"], "optimizer.name: cannot load"),
    "a metric that is none": (["checkpoint.best=eval/acuracy"], "checkpoint.best: found 'eval/acuracy'"),
    "a folder that is a file": (["output_dir=file"], "output_dir: cannot write"),
}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """One folder for all mistakes: none of them may leave something that disturbs a later run."""
    folder = tmp_path_factory.mktemp("mistaken")
    (folder / "file").touch()
    sample = pathlib.Path(care_jax_package.__file__).parent / "data" / "sample" / "model"
    for name in ("folder", "family"):
        shutil.copytree(sample, folder / name)
    config = json.loads((folder / "family" / "config.json").read_text())
    (folder / "family" / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_status_2(mistaken, mistake):
    arguments, message = MISTAKES[mistake]
    done = care_jax("train", "quickstart", *SHORT, *arguments, cwd=mistaken)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("care-jax: ")]
    assert len(said) == 1
    assert message in said[0]
    assert "Traceback" not in done.stderr


def test_what_was_a_mistake_can_be_corrected_in_the_same_folder(mistaken):
    done = care_jax("train", "quickstart", *SHORT, "data.max_steps=1", cwd=mistaken)
    assert done.returncode == 0, done.stderr
