"""Several processes are one run: the same numbers, one writer, and none waits for a dead process."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import care_jax as care_jax_package
from care_jax.distributed import Agreement, barrier, start_processes
from care_jax.errors import UserError
from care_jax.models import save_pretrained
from tests.training.batches import tiny_model
from tests.training.run.fake_bucket import Bucket

LOCAL = pathlib.Path(care_jax_package.__file__).parents[1] / "launch" / "local.sh"
SHORT = ["data.max_steps=2", "checkpoint.every=null", "eval_every=null", "data.train.0.cultures=[chinese]"]
SMALL = ["data.max_length=128", "batch={row_length: 128, examples: 4}", "trackers=[]"]
# AdamW divides a gradient by its own size: without this, rounding near 0 becomes a step of the learning rate.
SMOOTH = ["optimizer.eps=1e-4"]


def environment(**more):
    flags = "--xla_backend_optimization_level=0"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COORDINATOR")}
    program = str(pathlib.Path(sys.executable).with_name("care-jax"))
    return kept | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "CARE_JAX": program} | more


def train(count, folder, *arguments, **more):
    words = ["train", "quickstart", *SHORT, *SMALL, *SMOOTH, *arguments]
    return subprocess.Popen(
        [str(LOCAL), str(count), *words],
        cwd=folder,
        env=environment(CARE_JAX_LOGS=str(folder / "logs"), **more),
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(started):
    said = started.communicate(timeout=400)[1]
    assert started.returncode == 0, said
    return said


def numbers(folder):
    lines = [json.loads(line) for line in (folder / "runs/quickstart/metrics.jsonl").read_text().splitlines()]
    clock = ("_seconds", "_per_second", "_bytes")
    return [{k: v for k, v in line.items() if not k.endswith(clock) and k != "mfu"} for line in lines]


def same_run(run, expected):
    """Compares to 1e-5, but not the accuracy of step 1: it depends on the sign of a margin that is only rounding."""
    for line, other in zip(numbers(run), numbers(expected), strict=True):
        assert line.keys() == other.keys()
        for name, value in other.items():
            if line["step"] <= 1 and name.endswith("accuracies"):
                continue
            if isinstance(value, float):
                # Rewards are small differences of logps in the hundreds.
                least = 0 if name in ("loss", "grad_norm") else 2e-5
                shown = f"step {line['step']} {name}"
                np.testing.assert_allclose(line[name], value, rtol=1e-5, atol=least, err_msg=shown)
            else:
                assert line[name] == value, name
    weights = load_file(expected / "runs/quickstart/export/model.safetensors")
    for name, value in load_file(run / "runs/quickstart/export/model.safetensors").items():
        np.testing.assert_allclose(
            value, weights[name], rtol=1e-5, atol=1e-5 * np.abs(weights[name]).max(), err_msg=name
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    finished(train(1, folder))
    return folder


def test_two_processes_are_one_run(alone, tmp_path):
    said = finished(train(2, tmp_path))
    assert said.count("train step compiled") == 1, "one process prints"
    run = tmp_path / "runs" / "quickstart"
    assert json.loads((run / "manifest.json").read_text())["processes"] == 2
    assert {path.name for path in run.iterdir()} == {path.name for path in (alone / "runs/quickstart").iterdir()}
    same_run(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["{data: 4, fsdp: 1, tensor: 1}", "{data: 1, fsdp: 2, tensor: 2}"])
def test_four_processes_are_one_run(alone, tmp_path, mesh):
    finished(train(4, tmp_path, f"mesh={mesh}"))
    same_run(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "victim"), [(2, 0), (2, 1), (4, 2)])
def test_if_one_is_killed_the_others_end_and_the_run_resumes(tmp_path, count, victim):
    longer = ["data.max_steps=40", "checkpoint.every=5"]
    started = train(count, tmp_path, *longer)
    run = tmp_path / "runs" / "quickstart"
    deadline = time.monotonic() + 300
    while not (run / "checkpoints" / "5").exists():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process(started.pid, victim), signal.SIGKILL)
    killed = time.monotonic()
    started.communicate(timeout=100)
    assert time.monotonic() - killed < 60
    assert started.returncode != 0
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    finished(train(count, uninterrupted, *longer))
    said = finished(train(count, tmp_path, *longer))
    assert "resumed at step" in said
    same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_two_processes_write_one_run_in_a_bucket(alone, tmp_path):
    pytest.importorskip("gcsfs")
    with contextlib.closing(Bucket()) as bucket:
        where = bucket.environment() | {"CARE_JAX_CACHE": str(tmp_path / "cache")}
        finished(train(2, tmp_path, "output_dir=gs://bucket/run", **where))
        assert not bucket.failures, bucket.failures[0]
    for name in bucket.below("bucket/run/"):
        path = tmp_path / "runs" / "quickstart" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.objects[f"bucket/run/{name}"])
    assert (tmp_path / "runs/quickstart/checkpoints/2/commit_success.txt").exists()
    same_run(tmp_path, alone)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    started = train(2, tmp_path, "data.max_steps=40", "checkpoint.every=null")
    metrics = tmp_path / "runs" / "quickstart" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process(started.pid, 1), signal.SIGTERM)
    said = started.communicate(timeout=120)[1]
    assert started.returncode == 75, said
    assert any((tmp_path / "runs/quickstart/checkpoints").glob("[0-9]*"))


def process(parent, number):
    """Returns the process id of process `number` of the script `parent`."""
    children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if f"JAX_PROCESS_ID={number}".encode() in pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"process {number} is not there")


@pytest.mark.parametrize(
    ("variables", "joined"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": ""}, None),
        ({"TPU_WORKER_HOSTNAMES": "one"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, {}),
        ({"CARE_JAX_DISTRIBUTED": "auto"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "here:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            {"num_processes": 4, "process_id": 3, "cluster_detection_method": "deactivate"},
        ),
    ],
)
def test_processes_join_if_there_are_several(monkeypatch, variables, joined):
    """By address, in a SLURM step, on GKE, on request; jax finds out the rest itself."""
    for name in ("SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES", "CARE_JAX_DISTRIBUTED", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    start_processes()
    silence = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 30}
    assert calls == ([] if joined is None else [joined | silence])


OWN_ROWS = """
import sys
from care_jax.sharding import make_mesh
from care_jax.training.placement import rows_of_this_process
import jax
for sizes in ((1, 2, 1), (2, 1, 1), (1, 1, 2)):
    rows = rows_of_this_process(make_mesh(*sizes), 8)
    print("process", jax.process_index(), sizes, rows.start, rows.stop, file=sys.stderr)
"""


def said_by_script(text, folder, count, *arguments):
    """Returns what `count` processes of a Python script print on stderr."""
    script = folder / "script.py"
    script.write_text(f"#!{sys.executable}\n{text}")
    script.chmod(0o755)
    where = environment(CARE_JAX=str(script), CARE_JAX_LOGS=str(folder))
    command = [str(LOCAL), str(count), *map(str, arguments)]
    done = subprocess.run(command, env=where, capture_output=True, text=True, check=True)
    return done.stderr + "".join(path.read_text() for path in folder.glob("process-*.log"))


@pytest.mark.slow
def test_each_of_two_processes_fills_the_rows_of_its_own_devices(tmp_path):
    said = said_by_script(OWN_ROWS, tmp_path, 2, "now")
    rows = {line.partition(" ")[2] for line in said.splitlines() if line.startswith("process ")}
    assert rows == {
        *("0 (1, 2, 1) 0 4", "1 (1, 2, 1) 4 8"),
        *("0 (2, 1, 1) 0 4", "1 (2, 1, 1) 4 8"),
        *("0 (1, 1, 2) 0 8", "1 (1, 1, 2) 0 8"),
    }


IMPORT = """
import pathlib, sys
import jax, numpy as np
from care_jax import models, sharding
from care_jax.models.hf import safetensors_io

mesh = sharding.make_mesh(1, -1, 1)
bytes_read = []
read = safetensors_io.Tensor.read
def counted(self, shape, index):
    values = read(self, shape, index)
    bytes_read.append(values.nbytes)
    return values
safetensors_io.Tensor.read = counted
_, params = models.from_pretrained(sys.argv[1], mesh=mesh)
total = sum(np.prod(tensor.shape) for tensor in safetensors_io.folder_tensors(pathlib.Path(sys.argv[1])).values())
print("share", sum(bytes_read) / (4 * total), file=sys.stderr)
models.save_pretrained(sys.argv[2], *models.from_pretrained(sys.argv[1], mesh=mesh))
"""


@pytest.mark.slow
def test_each_of_four_processes_asks_for_its_part_of_a_checkpoint(tmp_path):
    model, params = tiny_model(tmp_path, num_attention_heads=8, num_key_value_heads=8, hidden_size=64)
    save_pretrained(tmp_path / "whole", model, params)
    said = said_by_script(IMPORT, tmp_path, 4, tmp_path / "whole", tmp_path / "again")
    shares = [float(line.split()[1]) for line in said.splitlines() if line.startswith("share ")]
    assert len(shares) == 4
    assert max(shares) <= 0.3, shares
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, value in load_file(tmp_path / "whole" / "model.safetensors").items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_an_address_needs_its_numbers(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES"):
        start_processes()


def test_a_single_process_joins_nothing_and_does_not_wait(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES", "SLURM_STEP_NUM_TASKS", "CARE_JAX_DISTRIBUTED"):
        monkeypatch.delenv(name, raising=False)
    start_processes()
    barrier("here")
    assert Agreement().any(True, False) == (True, False)


def test_the_script_hands_on_what_ends_a_process(tmp_path):
    program = tmp_path / "program"
    program.write_text('#!/usr/bin/env bash\n[ "$JAX_PROCESS_ID" = "$1" ] && exit 75\nexit 0\n')
    program.chmod(0o755)
    for number, status in ((0, 75), (1, 75), (2, 0)):
        done = subprocess.run(
            [str(LOCAL), "2", str(number)], env=environment(CARE_JAX=str(program)), capture_output=True, check=False
        )
        assert done.returncode == status
    assert shutil.which("bash")
