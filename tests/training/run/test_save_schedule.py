"""When a run saves: every so many steps, after so many minutes, after a signal, and at the end."""

import jax
import jax.numpy as jnp
import pytest

from care_jax import losses, sharding
from care_jax.config import Config
from care_jax.stopping import Interrupted, StopSignal
from care_jax.training.context import RunContext
from care_jax.training.objective import make_objective
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import RunDirectory
from care_jax.training.run.metrics import Recorder
from care_jax.training.run.save_schedule import SaveSchedule
from care_jax.training.step import State

STEPS = 10
STATE = State(jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32), {"w": jnp.ones(2)}, None, ())


@pytest.fixture
def make_schedule(tmp_path):
    """A function from keys of the configuration to the schedule and the context of a run of ten steps."""

    def make(**changes):
        config = Config.from_any("quickstart", **{"trackers": [], **changes})
        mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
        directory = RunDirectory(tmp_path, tmp_path)
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        run = RunContext(config, make_objective(losses.dpo), mesh, directory, checkpoints, StopSignal())
        return SaveSchedule(run, Recorder(run, None, STEPS), STEPS, {"last": STEPS}), run

    return make


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [({"every": None}, [10]), ({"every": 4}, [4, 8, 10]), ({"every": 0.3}, [3, 6, 9, 10])],
)
def test_every_so_many_steps_and_at_the_end(make_schedule, checkpoint, expected):
    saves, _ = make_schedule(checkpoint=checkpoint)
    assert [step for step in range(1, STEPS + 1) if saves.due(step)] == expected


def test_after_so_many_minutes(make_schedule, monkeypatch):
    saves, _ = make_schedule(checkpoint={"every": None, "minutes": 1})
    assert not saves.due(1)
    monkeypatch.setattr(saves, "_saved_at", saves._saved_at - 61)
    assert saves.due(2)


def test_a_signal_saves_and_stops_the_run(make_schedule):
    saves, run = make_schedule(checkpoint={"every": None})
    saves.stop_if_requested(3)
    run.stop.requested = True
    assert saves.due(4)
    with run.checkpoints as checkpoints:
        saves.save(4, STATE, None)
        with pytest.raises(Interrupted, match="stopped at step 4 of 10; saved"):
            saves.stop_if_requested(4)
        assert checkpoints.steps() == [4]
        assert checkpoints.meta(4)["last"] == STEPS
