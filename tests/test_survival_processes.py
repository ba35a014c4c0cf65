"""Several processes: a folder in use, a lost process, another number of processes than before (--slow)."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.test_processes import environment, finished, process, same_run, train
from tests.training.run.test_directory import HOLD_LOCK

pytestmark = pytest.mark.slow


def test_a_folder_in_use_is_refused_by_every_process(tmp_path):
    run = tmp_path / "runs" / "quickstart"
    run.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", HOLD_LOCK], cwd=run, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"ready\n"
        started = train(2, tmp_path)
        said = started.communicate(timeout=120)[1]
    finally:
        other.kill()
        other.wait()
    assert started.returncode == 2
    assert "is in use: process 7 of there is running there" in said
    assert "is in use: another process is running there" in (tmp_path / "logs" / "process-1.log").read_text()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_other(tmp_path, victim):
    """Within a minute, with exit status 1 and the reason; how the run resumes is in tests/test_processes.py."""
    started = train(2, tmp_path, "data.max_steps=400", "checkpoint.every=2")
    first = tmp_path / "runs" / "quickstart" / "checkpoints" / "2"
    while not first.exists():
        assert started.poll() is None
        time.sleep(0.05)
    os.kill(process(started.pid, victim), signal.SIGKILL)
    said = started.communicate(timeout=60)[1]
    other = said if victim == 1 else (tmp_path / "logs" / "process-1.log").read_text()
    assert re.search(r"care-jax: another process of this run is gone .*from which the same command resumes", other), (
        other
    )
    assert "Traceback" not in other
    assert "ended with 1;" in said


def test_one_that_fails_alone_keeps_its_status(tmp_path):
    """It does not wait for the others, which wait for it; they report that it is gone."""
    program = tmp_path / "program"
    own = environment()["CARE_JAX"]
    program.write_text(
        f'#!/bin/sh\n[ "$JAX_PROCESS_ID" = 1 ] && set -- "$@" data.train.0.path=nowhere\nexec {own} "$@"\n'
    )
    program.chmod(0o755)
    began = time.monotonic()
    said = train(2, tmp_path, CARE_JAX=str(program)).communicate(timeout=120)[1]
    assert time.monotonic() - began < 90
    assert "care-jax: another process of this run is gone" in said
    assert "ended with 1;" in said
    assert "ended with 2;" in said
    other = (tmp_path / "logs" / "process-1.log").read_text()
    assert "care-jax: no such file or folder: nowhere" in other


def back_to(run, step):
    """Makes the run as if it had ended after `step`."""
    shutil.rmtree(run / "export")
    for path in (run / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


def test_two_processes_then_one_and_back(tmp_path):
    """The same units in the same order, and the numbers of a run of one process to 1e-5."""
    words = ["data.max_steps=6", "checkpoint={every: 2, keep: 9}", "eval_every=3"]
    alone, changed = tmp_path / "alone", tmp_path / "changed"
    alone.mkdir()
    changed.mkdir()
    finished(train(1, alone, *words))
    finished(train(2, changed, *words))
    run = changed / "runs" / "quickstart"
    for processes, step in ((1, 2), (2, 4)):
        back_to(run, step)
        said = finished(train(processes, changed, *words))
        assert f"resumed at step {step} of 6" in said
        assert f"processes: {3 - processes} then, {processes} now" in said
        same_run(changed, alone)
