"""Checkpoints: which ones are kept, damage is detected and named, a failed save does no harm to earlier ones."""

import contextlib
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from care_jax.errors import UserError
from care_jax.training.errors import ProcessLost, RunFailed, explain_failures
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.step import State
from tests.training.run.damage import harm, no_privileges

META = {"config": "name: run", "last": 9}


def state(step: int) -> State:
    """Returns a state whose numbers depend on the step."""
    params = {"embed": jnp.full((64, 8), float(step)), "norm": jnp.arange(8.0) + step}
    zero = jnp.zeros((), jnp.int32)
    return State(zero + step, zero, params, None, optax.adam(1e-3).init(params))


def is_of(restored: State, step: int) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), restored, state(step)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, state(step), META)
        checkpoints.wait()
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_what_is_saved_comes_back(saved):
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.latest() == 4
        assert is_of(checkpoints.restore(4, state(0)), 4)
        assert checkpoints.meta(4)["last"] == 9
        weights = checkpoints.restore_trained(2, state(0).params, adapters=False)
        np.testing.assert_array_equal(weights["embed"], 2.0)


def test_the_newest_and_the_best_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2, best="eval/loss") as checkpoints:
        for step, loss in ((1, 0.3), (2, 0.1), (3, 0.2), (4, None), (5, 0.4)):
            checkpoints.save(step, state(step), META, None if loss is None else {"eval/loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
    with Checkpoints(tmp_path, keep=1, best="eval/rewards/accuracies") as checkpoints:
        checkpoints.save(6, state(6), META, {"eval/rewards/accuracies": 0.3})
        checkpoints.wait()
        assert checkpoints.steps() == [5, 6]  # that of step 5 was saved with a metric of 0.4
    assert not list(tmp_path.glob("*removed*"))


def test_no_checkpoint_is_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert "starts again" in checkpoints.resume_hint()


@pytest.mark.parametrize("seed", range(50))
def test_of_fifty_damaged_ones_none_is_used(saved, open_folder, capsys, seed):
    folder = shutil.copytree(saved, open_folder / "checkpoints")
    kind = harm(folder / "4", seed)
    with no_privileges(open_folder), Checkpoints(folder, keep=2) as checkpoints:
        if kind.startswith("permissions"):
            with pytest.raises(UserError, match="step 4 cannot be read"):
                checkpoints.latest()
            return
        assert checkpoints.latest() == 2, kind
        assert "the checkpoint of step 4 is damaged: " in capsys.readouterr().err
        assert is_of(checkpoints.restore(2, state(0)), 2)
        assert checkpoints.steps() == [2]
        assert (folder / "4.damaged").is_dir()


def test_what_is_damaged_is_named(copied, capsys):
    data = max(copied.glob("4/**/d/*"), key=os.path.getsize)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with Checkpoints(copied, read_only=True) as checkpoints:
        assert checkpoints.latest() == 2
    stderr = capsys.readouterr().err
    assert f"{data.relative_to(copied / '4')} differs from its sha256" in stderr
    assert (copied / "4").is_dir(), "read only"


def test_where_none_is_sound_the_run_is_refused(copied):
    for step in (2, 4):
        (copied / str(step) / "sha256.json").unlink()
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(UserError, match=r"no checkpoint is sound \(step 4: it misses sha256.json; step 2"):
            checkpoints.latest()
        assert checkpoints.steps() == [2, 4], "nothing is moved, so that the next start is refused too"


@contextlib.contextmanager
def a_small_disk(limit: int):
    """While entered, no file may grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_is_told_of_and_harms_nothing(copied, capsys):
    with Checkpoints(copied, keep=2) as checkpoints:
        assert checkpoints.latest() == 4
        with a_small_disk(256):
            checkpoints.save(6, state(6), META)
            with pytest.raises(RunFailed, match=r"step 6 could not be saved.*last good checkpoint is that of step 4"):
                checkpoints.wait()
        assert "warning: the state of step 6 could not be saved" in capsys.readouterr().err
        assert checkpoints.steps() == [2, 4]
        checkpoints.save(8, state(8), META)
        checkpoints.wait()
        assert checkpoints.steps() == [4, 8]
    with Checkpoints(copied) as checkpoints:
        assert not list(copied.glob("*tmp*"))  # not earlier: Orbax's threads may write after the failure is reported
        assert is_of(checkpoints.restore(checkpoints.latest(), state(0)), 8)


def test_a_failing_machine_is_one_sentence(tmp_path):
    full = pytest.raises(RunFailed, match=r"here: No space left on device; no checkpoint")
    with full, explain_failures("there", lambda: "no checkpoint"):
        raise OSError(28, "No space left on device", "here")
    with pytest.raises(FileNotFoundError), explain_failures("there", str):
        (tmp_path / "nothing").read_text()
    with pytest.raises(UserError), explain_failures("there", str):
        raise UserError("output_dir: Permission denied")


def test_a_lost_process_is_one_sentence(monkeypatch):
    gone = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer\nmore")
    with pytest.raises(jax.errors.JaxRuntimeError), explain_failures("there", str):
        raise gone  # a single process has lost no other
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    lost = pytest.raises(
        ProcessLost, match=r"another process of this run is gone \(UNKNOWN: Gloo .* peer\); no checkpoint"
    )
    with lost, explain_failures("there", lambda: "no checkpoint"):
        raise gone
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE"), explain_failures("there", str):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
