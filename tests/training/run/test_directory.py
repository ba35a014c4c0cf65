"""One run at a time uses a run directory."""

import errno
import fcntl
import subprocess
import sys

import pytest

from care_jax.errors import UserError
from care_jax.training.run.directory import lock_folder

HOLD_LOCK = """
import fcntl, time
file = open(".lock", "w+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 of there")
file.flush()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_folder_in_use_is_refused_until_its_run_dies(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD_LOCK], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"ready\n"
        refused = pytest.raises(UserError, match=r"output_dir: .* is in use: process 7 of there is running there")
        with refused, lock_folder(tmp_path, patience=0.2):
            raise AssertionError("two at once")
    finally:
        other.kill()
    with lock_folder(tmp_path):  # waits until the killed process is gone
        assert (tmp_path / ".lock").read_text().startswith("process ")
    with lock_folder(tmp_path, patience=0.0):
        pass
    other.wait()


def test_a_file_system_without_locks_breaks_no_run(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with lock_folder(tmp_path, patience=0.0):
        pass
