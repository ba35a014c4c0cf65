"""Kills, signals, damaged files and full disks, with the real command (--slow); shorter versions are in
test_end_to_end.py and tests/training. The numbers of repetitions are constants.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from care_jax.training.forward.cache import ReferenceCache
from tests.test_end_to_end import care_jax, command, environment, same_end
from tests.test_stopping import metadata_server
from tests.training.run.damage import KINDS, harm

pytestmark = pytest.mark.slow

RANDOM_KILLS, TERMS, DAMAGED, DAMAGED_CACHES = 4, 5, 13, 5  # for each of the four variants
RUN = ["data.max_steps=8", "checkpoint.every=2", "eval_every=3", "data.max_length=128", "batch.row_length=128"]
FEW = ["data.train.0.cultures=[chinese]", "data.train.0.limit={questions: 16}", "data.eval={questions: 4}"]
SMALL = [*RUN, *FEW, "batch.unit=pair", "batch.examples=4"]
KTO = [*SMALL, "loss.name=kto", "optimizer.learning_rate=1e-4"]
ADAPTERS = "model.lora={r: 4, alpha: 8, base_dtype: float32}"
VARIANTS = {
    "dpo": [*SMALL, "batch.microbatch_rows=8"],  # one microbatch per step
    "dpo-lora-accumulated": [*SMALL, "batch.microbatch_rows=2", ADAPTERS],
    "kto-accumulated": [*KTO, "batch.microbatch_rows=1"],
    "kto-lora": [*KTO, "batch.microbatch_rows=8", ADAPTERS],
}


@pytest.fixture(scope="module", params=VARIANTS)
def finished_run(request, tmp_path_factory):
    """(words of the command, folder of an uninterrupted run, seconds from its first file to its end)."""
    folder = tmp_path_factory.mktemp(request.param)
    words = ["train", "quickstart", *VARIANTS[request.param]]
    for _ in range(2):  # the first run fills the compilation cache
        shutil.rmtree(folder / "runs", ignore_errors=True)
        done = care_jax(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    microbatches = int(re.search(r"at most (\d+) microbatches", done.stderr)[1])
    assert (microbatches > 1) == ("accumulated" in request.param)
    run = folder / "runs" / "quickstart"
    return words, run, time.time() - (run / "config.yaml").stat().st_mtime


def start(words, folder):
    """Starts the command; returns when it has written into its folder."""
    config = folder / "runs" / "quickstart" / "config.yaml"
    before = config.stat().st_mtime_ns if config.exists() else 0
    folder.mkdir(exist_ok=True)
    with (folder / "stderr").open("a") as errors:
        started = subprocess.Popen(command(*words), cwd=folder, env=environment(), stderr=errors)
    while started.poll() is None and (not config.exists() or config.stat().st_mtime_ns == before):
        time.sleep(0.002)
    return started


def lines(run):
    path = run / "metrics.jsonl"
    complete = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in complete]


def evaluated_next(run):
    """Whether the evaluation of the last recorded step is under way."""
    recorded = lines(run)
    return recorded and recorded[-1]["step"] % 3 == 0 and "eval/loss" not in recorded[-1]


# The phases of a run in their order, as its files show them.
PHASES = {
    "before the reference": lambda run: not any(run.glob("reference/*")),
    "the reference": lambda run: any(run.glob("reference/*")) and not (run / "metrics.jsonl").exists(),
    "the middle of a save": lambda run: any(run.glob("checkpoints/*tmp*")),
    "an evaluation": evaluated_next,
    "the export": lambda run: any(run.glob(".export*")),
}
AIMED = ["the reference", "the middle of a save", "an evaluation", "the middle of a save", "the export"]


def phase(run):
    return next((name for name in reversed(PHASES) if PHASES[name](run)), "the steps")


def kill_in(started, run, aim):
    """Kills the command in the phase `aim`; returns whether the command reached it."""
    while started.poll() is None:
        if PHASES[aim](run):
            started.send_signal(signal.SIGSTOP)
            time.sleep(0.01)
            if PHASES[aim](run):
                started.kill()
                return started.wait() == -signal.SIGKILL
            started.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    return False


def finish(words, folder, run):
    done = care_jax(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    same_end(folder / "runs" / "quickstart", run)
    return done


def at_random(finished_run, tmp_path, how, seed):
    """Sends the signal `how` at random moments of runs, without end; yields (status, folder) after each."""
    words, run, seconds = finished_run
    draw, number = random.Random(seed), 0
    while True:
        folder = tmp_path / str(number)
        started = start(words, folder)
        try:
            started.wait(timeout=draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            started.send_signal(how)
            yield started.wait(timeout=120), folder
        else:
            assert started.returncode == 0, (folder / "stderr").read_text()
            same_end(folder / "runs" / "quickstart", run)
            number += 1


def test_kills_in_every_phase(finished_run, tmp_path):
    """One run is killed and resumed several times: in the reference pass, in saves, an evaluation, the export."""
    words, run, _ = finished_run
    folder = tmp_path / "run"
    for aim in AIMED:
        assert kill_in(start(words, folder), folder / "runs" / "quickstart", aim), f"it ended without {aim}"
        print(f"killed in {aim}")
    finish(words, folder, run)


def test_kills_at_random_moments(finished_run, tmp_path):
    words, run, _ = finished_run
    kills = 0
    for status, folder in at_random(finished_run, tmp_path, signal.SIGKILL, seed=1):
        assert status in (-signal.SIGKILL, 0)
        print(f"killed in {phase(folder / 'runs' / 'quickstart')}")
        kills += status != 0
        if kills == RANDOM_KILLS:
            break
    for folder in tmp_path.iterdir():
        finish(words, folder, run)


def test_terms_at_random_moments(finished_run, tmp_path):
    """Exit status 75, and the last recorded step is saved."""
    words, whole, _ = finished_run
    stopped = 0
    for status, folder in at_random(finished_run, tmp_path, signal.SIGTERM, seed=2):
        run = folder / "runs" / "quickstart"
        if status != 75:  # the signal came after the last step
            assert (run / "export").exists(), (status, (folder / "stderr").read_text())
            continue
        last_step = max((line["step"] for line in lines(run)), default=0)
        if last_step:
            assert (run / "checkpoints" / str(last_step)).is_dir(), (folder / "stderr").read_text()
        print(f"stopped after step {last_step}")
        stopped += 1
        if stopped == TERMS:
            break
    for folder in tmp_path.iterdir():
        finish(words, folder, whole)


def unprivileged(*words, cwd):
    """Runs the command as a user who needs permissions to read a file, even if this is root."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    prefix = drop if os.geteuid() == 0 else []
    return subprocess.run(
        [*prefix, *command(*words)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )


def copied(run, folder, *without):
    """Copies a run into `folder` without its export and the folders named."""
    copy = shutil.copytree(run, folder / "runs" / "quickstart")
    for name in ("export", *without):
        shutil.rmtree(copy / name)
    return copy


def test_damaged_checkpoints(finished_run, tmp_path):
    """The previous one is used, with a warning, and the result is equal bit for bit; an unreadable one is refused."""
    words, run, _ = finished_run
    for seed in range(DAMAGED):
        folder = tmp_path / str(seed)
        copy = copied(run, folder)
        what = harm(copy / "checkpoints" / "8", seed)
        done = unprivileged(*words, cwd=folder)
        if what.startswith("permissions"):
            assert done.returncode == 2, (what, done.stderr)
            assert "the checkpoint of step 8 cannot be read (Permission denied)" in done.stderr, what
            continue
        assert done.returncode == 0, (what, done.stderr)
        assert "the checkpoint of step 8 is damaged" in done.stderr, what
        assert "resumed at step 6 of 8" in done.stderr, what
        same_end(copy, run)
        shutil.rmtree(folder)


def test_damaged_reference_caches(finished_run, tmp_path):
    """Refused with the reason; a missing part is computed again, and the result is equal bit for bit."""
    words, run, _ = finished_run
    for seed in range(DAMAGED_CACHES):
        folder = tmp_path / str(seed)
        copy = copied(run, folder, "checkpoints")
        if seed == len(KINDS):
            what = "made for another model"
            part = next(copy.glob("reference/*/part*"))
            other = ReferenceCache(tmp_path / "other", {"weights": "another's"})
            other.add([bytes(16)], np.zeros(1, np.float32), write=True)
            shutil.copy(next(other.folder.glob("part*")), part)
        else:
            what = harm(copy / "reference", seed)
        done = unprivileged(*words, cwd=folder)
        if what.startswith("delete"):
            assert done.returncode == 0, (what, done.stderr)
            same_end(copy, run)
            continue
        assert done.returncode == 2, (what, done.stderr)
        assert re.search(
            r"(damaged reference cache|this reference cache (cannot be read|was made for))", done.stderr
        ), what
        assert "Traceback" not in done.stderr, what


@pytest.mark.parametrize("finished_run", ["dpo"], indirect=True)
def test_a_notice_of_the_cloud(finished_run, tmp_path):
    """As after SIGTERM: exit status 75, and the state is saved."""
    words, *_ = finished_run
    here = tmp_path / "runs" / "quickstart"
    with metadata_server(lambda: "TRUE" if len(lines(here)) > 2 else "FALSE") as (host, requests):
        done = subprocess.run(
            command(*words, "data.max_steps=1000"), cwd=tmp_path, env=environment() | {"GCE_METADATA_HOST": host},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert len(requests) > 1
    assert "this machine is to be taken away, stopping: the running step will be finished and saved" in done.stderr
    assert "the same command resumes from there" in done.stderr
    stopped = max(int(path.name) for path in (here / "checkpoints").iterdir())
    assert f"stopped at step {stopped} of " in done.stderr
    assert care_jax(*words, cwd=tmp_path).returncode == 2, "another length of the run is another run"


@pytest.mark.parametrize("finished_run", ["dpo"], indirect=True)
def test_no_grace(finished_run, tmp_path):
    """The process exits without a save after the grace period; the steps since the last one are repeated."""
    words, run, _ = finished_run
    short = [*words, "checkpoint.grace_seconds=0.001"]
    started = start(short, tmp_path)
    here = tmp_path / "runs" / "quickstart"
    while not lines(here) or lines(here)[-1]["step"] < 3:
        assert started.poll() is None
        time.sleep(0.001)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 75
    said = (tmp_path / "stderr").read_text()
    assert re.search(
        r"left without a save 0.001 s after the signal .*the last good checkpoint is that of step \d", said
    )
    finish(short, tmp_path, run)


@pytest.mark.parametrize("finished_run", ["dpo"], indirect=True)
def test_a_folder_has_one_run_at_a_time(finished_run, tmp_path):
    words, run, _ = finished_run
    started = start(words, tmp_path)
    started.send_signal(signal.SIGSTOP)  # it holds the lock and does not end meanwhile
    refused = care_jax(*words, cwd=tmp_path)
    started.kill()
    assert refused.returncode == 2, refused.stderr
    assert f"is in use: process {started.pid} of " in refused.stderr
    finish(words, tmp_path, run)  # at once: the killed process may still be dying
    started.wait()


@pytest.fixture
def small_disk(tmp_path):
    """Returns a function that mounts a disk of some KiB; only root can."""
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


def ends_clearly(done):
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("care-jax: ")], done.stderr


@pytest.mark.parametrize("finished_run", ["dpo", "kto-lora"], indirect=True)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 0.75, 0.9, 0.97])
def test_a_disk_that_fills(finished_run, small_disk, tmp_path, share):
    """At every size: a clear message, no traceback, sound checkpoints; on a larger disk the run then resumes."""
    words, run, _ = finished_run
    place = small_disk(max(8, int(share * used(run)) // 1024))
    ends_clearly(care_jax(*words, f"output_dir={place}/run", cwd=tmp_path))
    print(f"full at {share}: {sorted(path.name for path in place.glob('run/checkpoints/*'))}")
    subprocess.run(["mount", "-o", f"remount,size={4 * used(run)}", str(place)], check=True)
    done = care_jax(*words, f"output_dir={place}/run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "damaged" not in done.stderr
    same_end(place / "run", run)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_disk_that_fills_during_the_export(finished_run, small_disk, share):
    """The last checkpoint stays and no incomplete export appears; with enough space the same command writes it."""
    words, run, _ = finished_run
    place = small_disk(4 * used(run) // 1024)
    copy = shutil.copytree(run, place / "runs" / "quickstart")
    before = used(copy / "export")
    shutil.rmtree(copy / "export")
    ballast = place / "ballast"
    free = shutil.disk_usage(place).free - (1 << 16)  # for the files that a start writes
    ballast.write_bytes(bytes(int(free - share * before)))
    ends_clearly(care_jax(*words, cwd=place))
    assert not (copy / "export").exists()
    ballast.unlink()
    done = care_jax(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "holds a finished run of 8 steps, whose export is missing" in done.stderr
    same_end(copy, run)
