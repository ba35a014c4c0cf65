"""Runs that are killed, stopped, damaged and starved through the real command: --slow; the short versions are in
test_end_to_end.py and tests/training. Each number of times is a constant here.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.test_end_to_end import care_jax, command, environment, same_end
from tests.training.damage import harm

pytestmark = pytest.mark.slow

KILLS, TERMS, DAMAGED = 8, 5, 10  # for each of the four variants
RUN = ["data.max_steps=8", "checkpoint.every=2", "eval_every=3", "data.train.0.cultures=[chinese]"]
SMALL = ["batch.unit=pair", "batch.examples=8"]
KTO = [*SMALL, "loss.name=kto", "optimizer.learning_rate=1e-4"]
ADAPTERS = "model.lora={r: 4, alpha: 8, base_dtype: float32}"
VARIANTS = {
    "dpo": [*SMALL, "batch.microbatch_rows=8"],  # one microbatch a step
    "dpo-lora-accumulated": [*SMALL, "batch.microbatch_rows=2", ADAPTERS],
    "kto-accumulated": [*KTO, "batch.microbatch_rows=1"],
    "kto-lora": [*KTO, "batch.microbatch_rows=8", ADAPTERS],
}


@pytest.fixture(scope="module", params=VARIANTS)
def whole(request, tmp_path_factory):
    """(words of the command, folder of a run that nothing interrupted, seconds from its first file to its end)."""
    folder = tmp_path_factory.mktemp(request.param)
    words = ["train", "quickstart", *RUN, *VARIANTS[request.param]]
    done = care_jax(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "quickstart"
    return words, run, time.time() - (run / "config.yaml").stat().st_mtime


def start(words, folder):
    """The command under way, from the moment at which it has entered its folder."""
    config = folder / "runs" / "quickstart" / "config.yaml"
    before = config.stat().st_mtime_ns if config.exists() else 0
    errors = (folder / "stderr").open("a")
    started = subprocess.Popen(command(*words), cwd=folder, env=environment(), stderr=errors)
    while started.poll() is None and (not config.exists() or config.stat().st_mtime_ns == before):
        time.sleep(0.002)
    return started


def interrupted(whole, tmp_path, count, how, seed):
    """Sends `how` at `count` random moments, in as many runs as that takes; yields (status, folder) after each."""
    words, run, seconds = whole
    draw, sent, number = random.Random(seed), 0, 0
    while sent < count:
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        started = start(words, folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(timeout=draw.uniform(0, seconds))
        if started.poll() is None:
            started.send_signal(how)
            sent += 1
            yield started.wait(timeout=120), folder
        else:
            assert started.returncode == 0, (folder / "stderr").read_text()
            same_end(folder / "runs" / "quickstart", run)
            number += 1
    for last in range(number + 1):
        if (tmp_path / str(last)).exists():
            done = care_jax(*words, cwd=tmp_path / str(last))
            assert done.returncode == 0, done.stderr
            same_end(tmp_path / str(last) / "runs" / "quickstart", run)


def test_kills_at_random_moments(whole, tmp_path):
    for status, _ in interrupted(whole, tmp_path, KILLS, signal.SIGKILL, seed=1):
        assert status in (-signal.SIGKILL, 0)


def test_terms_at_random_moments(whole, tmp_path):
    """Exit 75 and nothing lost: what was recorded of steps is saved, unless no step was taken yet."""
    for status, folder in interrupted(whole, tmp_path, TERMS, signal.SIGTERM, seed=2):
        run = folder / "runs" / "quickstart"
        over = (run / "export").exists()  # the signal may come when nothing is left to be stopped
        assert status in (75, 0) or over, (folder / "stderr").read_text()
        metrics = run / "metrics.jsonl"
        taken = [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
        if status == 75 and any(taken):
            assert (run / "checkpoints" / str(max(taken))).is_dir(), (folder / "stderr").read_text()


def test_damaged_checkpoints(whole, tmp_path):
    """The one before is used, with a warning, and the end is the same to the bit."""
    words, run, _ = whole
    for seed in range(DAMAGED):
        folder = tmp_path / str(seed)
        shutil.copytree(run, folder / "runs" / "quickstart")
        shutil.rmtree(folder / "runs" / "quickstart" / "export")
        if seed % 4 == 3 and os.geteuid() == 0:
            continue  # root reads everything; tests/training/test_checkpoints.py does it as another user
        what = harm(folder / "runs" / "quickstart" / "checkpoints" / "8", seed)
        done = care_jax(*words, cwd=folder)
        assert done.returncode == 0, (what, done.stderr)
        assert "the checkpoint of step 8 is damaged" in done.stderr, what
        assert "resumed at step 6 of 8" in done.stderr, what
        same_end(folder / "runs" / "quickstart", run)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a small disk of so many KiB; only root can."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kib):
        words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(words, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], check=False, stderr=subprocess.DEVNULL)


def used(folder: pathlib.Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.75, 0.9, 0.97])
def test_a_disk_that_fills(whole, small_disk, tmp_path, share):
    """At every size: a clear end without a traceback, what was saved is sound, and with room the end is the same."""
    words, run, _ = whole
    place = small_disk(int(share * used(run)) // 1024)
    done = care_jax(*words, f"output_dir={place}/run", cwd=tmp_path)
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "No space left on device" in done.stderr
    # TensorStore prints callbacks that come late to a save that failed, which nobody can keep from it; none are ours.
    assert not re.search(r'File ".*/care_jax/', done.stderr), done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("care-jax: ")], done.stderr
    subprocess.run(["mount", "-o", f"remount,size={4 * used(run)}", str(place)], check=True)
    done = care_jax(*words, f"output_dir={place}/run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "damaged" not in done.stderr
    same_end(place / "run", run)
