"""Whether a start resumes a run: what `resume` requires, and which changes are refused or announced."""

import jax
import pytest

from care_jax import config as configs
from care_jax import sharding
from care_jax.config import Config
from care_jax.errors import UserError
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.identity import Identity
from care_jax.training.run.manifest import read_manifest, write_manifest
from care_jax.training.run.resume import Start, numerics_environment, open_run
from tests.training.run.test_checkpoints import state

IDENTITY = Identity({"a.jsonl": "1" * 64}, "c" * 64, "t" * 64, "w" * 64)


def config_of(folder, **overrides):
    sample = {"model.path": "sample", "data.train": [{"reader": "care", "path": "sample"}]}
    return Config.from_any({}, **sample | {"output_dir": str(folder)} | overrides)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def saved(tmp_path, mesh):
    """The folder of a run with a checkpoint of step 2."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        start = open_run(config_of(tmp_path), tmp_path, checkpoints, mesh)
        meta = {"config": configs.dump(start.config), "last": 4, "identity": vars(IDENTITY)}
        checkpoints.save(2, state(2), meta | {"where": numerics_environment(mesh)})
        checkpoints.wait()
    return tmp_path


def reopened(folder, mesh, **overrides):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return open_run(config_of(folder, **overrides), folder, checkpoints, mesh)


def test_a_new_run_starts_at_no_step_and_writes_its_configuration(tmp_path, mesh):
    start = reopened(tmp_path, mesh)
    assert (start.step, start.meta) == (None, {})
    assert configs.load(tmp_path / "config.yaml") == start.config
    assert start.config.data.template_date is not None
    with pytest.raises(UserError, match=r"resume: must, but .* holds no checkpoint"):
        reopened(tmp_path, mesh, resume="must")


def test_a_run_resumes_from_its_checkpoint(saved, mesh):
    assert reopened(saved, mesh).step == 2
    with pytest.raises(UserError, match=r"resume: never, but .* holds checkpoints already"):
        reopened(saved, mesh, resume="never")


def test_other_mathematics_are_refused_and_other_rounding_is_announced(saved, mesh, capsys):
    with pytest.raises(UserError, match=r"differs in what changes its numbers: loss.beta: 0.1 then, 0.3 now"):
        reopened(saved, mesh, **{"loss.beta": 0.3})
    assert "bitwise equality" not in capsys.readouterr().err
    reopened(saved, mesh, **{"model.remat": "none"})
    assert "bitwise equality with an uninterrupted run ends at step 2: model.remat" in capsys.readouterr().err


def test_other_content_is_refused(tmp_path):
    start = Start(config_of(tmp_path), 2, {"identity": vars(IDENTITY)}, (IDENTITY, "the run of m.json"))
    start.check(IDENTITY)
    now = Identity(**vars(IDENTITY) | {"tokenizer": "u" * 64})
    with pytest.raises(UserError, match=r"the run of m.json read something else: the tokenizer or chat template: ttt"):
        start.check(now)


def test_a_manifest_gives_back_the_configuration_and_the_identity(tmp_path, capsys):
    config = config_of(tmp_path)
    write_manifest(tmp_path, config, tmp_path, IDENTITY, "w" * 64)
    path = tmp_path / "manifest.json"
    assert read_manifest(path) == (config, IDENTITY)
    assert capsys.readouterr().err == ""
    assert read_manifest(path, overrides=["seed=3"])[0].seed == 3
    text = path.read_text()
    path.write_text(text.replace('"jax": "', '"jax": "0.0.'))
    read_manifest(path)
    assert "warning: other versions than in" in capsys.readouterr().err
    path.write_text("{}")
    with pytest.raises(UserError, match=r"not the manifest\.json of a run"):
        read_manifest(path)
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        read_manifest(tmp_path / "nowhere.json")
