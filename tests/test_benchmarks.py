"""Every benchmark runs with its smallest settings, each in its own process. Takes minutes: run with --slow."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


def run(folder, *words):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    path = folder / "record.json"
    command = [sys.executable, str(FOLDER / words[0]), *words[1:], "--quick", "--json", str(path)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("words", ["allpairs.py", "pairs.py", "against_naive.py allpairs", "against_naive.py pairs"])
def test_steps(words, tmp_path):
    """Loss and gradient of every mode equal those of one sequence per row."""
    results = run(tmp_path, *words.split())["results"]
    errors = [values for values in results.values() if "gradient_error" in values]
    assert len(errors) > 1
    for values in errors:
        assert values["loss_error"] < 1e-5
        assert values["gradient_error"] < 1e-4


@pytest.mark.parametrize("words", ["head.py", "pack.py", "epoch.py"])
def test_others(words, tmp_path):
    assert run(tmp_path, *words.split())["results"]


@pytest.mark.parity
def test_against_trl(tmp_path):
    pytest.importorskip("trl")
    results = run(tmp_path, "against_trl.py", "allpairs")["results"]
    assert results["trl"]["gradient_norm_error"] < 1e-4
