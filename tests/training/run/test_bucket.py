"""A run directory in a bucket: with the real Orbax, TensorStore and gcsfs, and a bucket on this machine."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load

import care_jax
from care_jax import models
from care_jax.config import Config
from care_jax.errors import UserError
from care_jax.training.errors import RunFailed
from care_jax.training.export.huggingface import export_run
from care_jax.training.run import bucket as bucket_files
from care_jax.training.run import checkpoints as checkpoints_module
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import run_directory
from tests.training.run.fake_bucket import Bucket, fake_gcs
from tests.training.run.test_checkpoints import META, is_of, state

HttpError = pytest.importorskip("gcsfs.retry").HttpError

CONFIG = {
    "model.path": "sample",
    "model.init": "random",
    "model.dtype": "float32",
    "model.remat": "none",
    "data.train": [{"reader": "care", "path": "sample", "cultures": ["chinese"]}],
    "data.eval": {"questions": 4},
    "data.max_steps": 4,
    "eval_every": None,
    "data.max_length": 128,
    "batch": {"unit": "pair", "examples": 4, "row_length": 128, "microbatch_rows": 4},
    "checkpoint": {"every": 2, "keep": 2},
    "trackers": ["tensorboard"],
}
CLOCK = ("_seconds", "_per_second", "_bytes", "mfu")


@pytest.fixture(scope="module")
def bucket():
    with fake_gcs() as fake:
        yield fake
        assert not fake.failures, fake.failures[0]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path, bucket):
    monkeypatch.setenv("CARE_JAX_CACHE", str(tmp_path / "cache"))
    bucket.refuse = Bucket.refuse


def lines(data: bytes):
    read = [json.loads(line) for line in data.decode().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(CLOCK)} for line in read]


@pytest.mark.usefixtures("one_device")
def test_a_run_its_resume_and_its_export(bucket, tmp_path, capsys):
    home, url = "one/runs/first/", "gs://one/runs/first"
    run = care_jax.train({}, **CONFIG, output_dir=url)
    assert str(run.path) == url
    names = bucket.below(home)
    assert {"config.yaml", "manifest.json", "data_report.json", "metrics.jsonl", "held_out.jsonl"} <= {*names}
    tops = {name.split("/")[0] for name in names if "/" in name}
    assert tops == {"checkpoints", "reference", "export", "tensorboard"}
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"2", "4"}
    assert names == [name for name in names if not name.endswith((".part", ".partial", ".lock"))]
    uninterrupted = lines(bucket.objects[home + "metrics.jsonl"])
    assert [line["step"] for line in uninterrupted] == [0, 1, 2, 3, 4, 4]
    weights = load(bucket.objects[home + "export/model.safetensors"])
    assert [path for path in (tmp_path / "cache" / "runs").rglob("*") if path.is_file() and path.name != ".lock"] == []

    # The same command again: the run is finished, and its model is read from the bucket.
    again = care_jax.train({}, **CONFIG, output_dir=url)
    assert "gs://one/runs/first holds a finished run of 4 steps" in capsys.readouterr().err
    assert lines("\n".join(map(json.dumps, again.metrics)).encode()) == uninterrupted
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again.params, run.params))

    # As after a kill: the last checkpoint is not committed, the metrics go further, the export is incomplete.
    bucket.delete(home + "checkpoints/4/commit_success.txt")
    bucket.delete(home + "export/config.json")
    capsys.readouterr()
    bucket.reads.clear()
    care_jax.train({}, **CONFIG, output_dir=url)
    stderr = capsys.readouterr().err
    assert "resumed at step 2 of 4" in stderr
    assert ", 0 microbatches run, the rest from" in stderr, "the reference is not computed again"
    assert not any("/export/" in name or "/tensorboard/" in name for name in bucket.reads)
    assert lines(bucket.objects[home + "metrics.jsonl"]) == uninterrupted
    for name, value in load(bucket.objects[home + "export/model.safetensors"]).items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    with pytest.raises(UserError, match=r"gs://one/runs/first holds a run that differs .*loss.beta: 0.1 then, 0.5 now"):
        care_jax.train({}, **CONFIG, output_dir=url, **{"loss.beta": 0.5})

    # From the bucket to a folder, and to another place in the bucket.
    assert export_run(url, tmp_path / "here") == 4
    assert export_run(url, "gs://two/model") == 4
    written = [name for name in bucket.writes if name.startswith("two/model/")]
    assert written[-1] == "two/model/config.json"
    for name, value in load(bucket.objects["two/model/model.safetensors"]).items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    _, loaded = models.from_pretrained("gs://two/model", dtype="float32")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded, run.params))
    assert (tmp_path / "here" / "README.md").read_bytes() == bucket.objects[home + "export/README.md"]


def test_checkpoints_stay_as_in_a_folder(bucket):
    folder = bucket_files.path_of("gs://three/checkpoints")
    with Checkpoints(folder, keep=2, best="eval/loss") as checkpoints:
        for step, loss in ((1, 0.3), (2, 0.1), (3, 0.2), (4, None)):
            checkpoints.save(step, state(step), META, None if loss is None else {"eval/loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3, 4]
    # A flipped bit, and a save that was killed.
    names = [name for name in bucket.objects if name.startswith("three/checkpoints/4/")]
    name = max(names, key=lambda name: len(bucket.objects[name]))
    data = bytearray(bucket.objects[name])
    data[len(data) // 2] ^= 1
    bucket.put(name, bytes(data), None)
    bucket.put("three/checkpoints/5/state/d/half", b"half", None)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.latest() == 3
        assert is_of(checkpoints.restore(3, state(0)), 3)
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 3, 4]
        assert bucket.below("three/checkpoints/5") == []
        assert checkpoints.latest() == 3
    assert {name.split("/")[0] for name in bucket.below("three/checkpoints/")} == {"2", "3", "4.damaged"}


def test_a_save_that_the_bucket_refuses_harms_nothing(bucket, capsys):
    with Checkpoints(bucket_files.path_of("gs://four/checkpoints")) as checkpoints:
        checkpoints.save(1, state(1), META)
        checkpoints.wait()
        bucket.refuse = lambda method, name: method == "POST" and name.startswith("four/checkpoints/2/")
        checkpoints.save(2, state(2), META)
        with pytest.raises(RunFailed, match=r"the state of step 2 could not be saved in gs://four/checkpoints"):
            checkpoints.wait()
        assert checkpoints.steps() == [1]
    assert "the last good checkpoint is that of step 1" in capsys.readouterr().err


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(bucket, capsys, monkeypatch):
    """The errors of gcsfs are no OSError."""

    def refused(*_, **__):
        raise HttpError({"code": 503, "message": "not now"})

    with Checkpoints(bucket_files.path_of("gs://seven/checkpoints"), keep=1) as checkpoints:
        checkpoints.save(1, state(1), META)
        checkpoints.wait()
        monkeypatch.setattr(checkpoints_module, "remove", refused)
        checkpoints.save(2, state(2), META)
        checkpoints.wait()
        assert checkpoints.steps() == [2]
    assert "warning: gs://seven/checkpoints/1 could not be removed: not now" in capsys.readouterr().err


def test_only_what_changed_is_copied(bucket, monkeypatch, tmp_path):
    bucket.put("five/run/metrics.jsonl", b"1\n", None)
    bucket.put("five/run/reference/k/part-000000.safetensors", b"part", None)
    bucket.put("five/run/export/model.safetensors", b"large", None)
    monkeypatch.setattr(bucket_files, "_UPLOAD_SECONDS", 0.01)
    with run_directory(Config.from_any({}, **CONFIG, output_dir="gs://five/run/")) as place:
        here = sorted(str(path.relative_to(place.folder)) for path in place.folder.rglob("*") if path.is_file())
        assert here == [".lock", "metrics.jsonl", "reference/k/part-000000.safetensors"]
        before = len(bucket.writes)
        with (place.folder / "metrics.jsonl").open("a") as file:
            file.write("2\n")
        (place.folder / "config.yaml.part").write_text("unfinished")
        while bucket.objects["five/run/metrics.jsonl"] != b"1\n2\n":
            pass
        place.upload()
        assert bucket.writes[before:] == ["five/run/metrics.jsonl"]
        (place.folder / "metrics.jsonl").write_text("3\n")
    assert bucket.objects["five/run/metrics.jsonl"] == b"3\n"


def test_what_cannot_be_used_is_said_before_anything_is_done(bucket):
    bucket.refuse = lambda method, name: method == "POST"
    with pytest.raises(RunFailed, match=r"gs://six/run/config.yaml: could not be written: .*[Ff]orbidden"):
        care_jax.train({}, **CONFIG, output_dir="gs://six/run")
    bucket.refuse = lambda method, name: True
    with pytest.raises(UserError, match=r"gs://six/run: cannot be read: .*[Ff]orbidden"):
        care_jax.train({}, **CONFIG, output_dir="gs://six/run")
    with pytest.raises(UserError, match=r"output_dir: found s3://six/run, expected a folder or gs://BUCKET"):
        care_jax.train({}, **CONFIG, output_dir="s3://six/run")
    bucket.refuse = Bucket.refuse
    with pytest.raises(UserError, match=r"gs://six/run: not a run directory: it holds no config\.yaml"):
        export_run("gs://six/run", "gs://six/export")
