"""Commands in child processes."""

import subprocess
import sys

from care_jax.study import jobs


def test_a_study_waits_for_the_processes_of_a_killed_one(tmp_path, capsys):
    log, mark = tmp_path / "one.log", tmp_path / "ended"
    script = f"import pathlib, time; time.sleep(2); pathlib.Path({str(mark)!r}).touch()"
    with log.open("ab") as file:
        assert jobs._is_free(file)
        left = subprocess.Popen([sys.executable, "-c", script], stdout=file)
    try:
        command = jobs.Command("one", ("losses", "--help"), log)
        assert jobs.run_all([command], 1, tmp_path / "compiled") == {"one": 0}
    finally:
        left.wait()
    assert mark.exists()
    out = capsys.readouterr().err
    assert out.index("one: waiting for a stopped study's process to save") < out.index("[1/1] one")
    assert "usage" in log.read_text()
