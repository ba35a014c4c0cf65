"""The command `care-jax plan`."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from care_jax import cli


def test_cards_that_are_not_here_may_be_several():
    """In a separate process, since jax must know the number before it starts."""
    words = ["quickstart", "--devices", "4", "--memory", "24GB", "--json", "batch.microbatch_rows=4"]
    command = [str(pathlib.Path(sys.executable).with_name("care-jax")), "plan", *words]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)
    assert (plan["devices"], plan["mesh"]["fsdp"], plan["fits"], plan["estimate"]) == (4, 4, True, True)
    assert plan["programs"]["train"]["collectives"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["h200", "--devices", "0"], "--devices: found 0, expected 1 or more"),
        (["h200", "--devices", "999"], "--devices: found 999, but jax was started with 8"),
        (["--devices", "2"], "--devices: found 2 without memory"),
        (["--devices", "2", "--topology", "v5p:2x2x2"], "--devices: found 2 with the topology v5p:2x2x2"),
        (["v5p-16", "--devices", "2"], "--devices: found 2 with the topology v5p:2x2x2"),
        (["--topology", "v5p"], "--topology: found 'v5p', expected a generation"),
        (["--memory", "0GB"], "--memory: found '0GB', expected"),
    ],
)
def test_what_no_plan_can_be_made_for_is_refused(words, message, capsys):
    assert cli.main(["plan", "quickstart", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_mesh_that_does_not_divide_is_refused_before_anything_is_compiled(capsys):
    status = cli.main(["plan", "quickstart", "mesh.fsdp=8", "batch.microbatch_rows=4", "--no-advice"])
    assert status == 2
    assert "batch.microbatch_rows has rows=4, which does not divide by the 8 parts" in capsys.readouterr().err
