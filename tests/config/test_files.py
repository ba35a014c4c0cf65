"""Recipes, machine files and overrides."""

import pytest

from care_jax import config
from care_jax.config import Config, files
from care_jax.errors import UserError
from tests.config.test_config import MACHINES, RECIPES, make


def test_shipped_names():
    assert RECIPES[0] != ""
    assert "quickstart" in RECIPES
    assert len(RECIPES) >= 13
    assert {"cpu", "v5e-64", "v5p-16", "v5p-256", "h200", "gpu-80gb", "gpu-24gb"} <= set(MACHINES)
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        config.load("quickstrt")


def test_machines_say_only_where_a_run_happens():
    allowed = {"model": {"dtype", "param_dtype", "remat", "attention"}, "batch": {"microbatch_rows"}}
    allowed |= {"mesh": {"data", "fsdp", "tensor"}, "optimizer": {"moment_dtype", "accumulate_dtype"}}
    for machine in MACHINES:
        for block, keys in files.read(machine, "machine").items():
            assert set(keys) <= allowed[block], machine


def test_overrides_reach_into_lists_and_absent_blocks():
    resolved = make(**{"data.train.0.limit.questions": 3, "model.lora.r": 8, "data.train.0.cultures": ["arab"]})
    assert resolved.data.train[0].limit.questions == 3
    assert resolved.data.train[0].cultures == ("arab",)
    assert resolved.model.lora.r == 8
    assert resolved.model.lora.target_modules == "all"


def test_alternatives_replace_each_other():
    held_out = Config.from_any(make(), **{"data.eval.questions": 64})
    assert (held_out.data.eval.fraction, held_out.data.eval.questions) == (None, 64)
    assert make(**{"data.eval": []}).data.eval == ()
    assert make(**{"data.eval": [{"path": "x"}]}).data.eval[0].reader == "care"
    assert Config.from_any(make(**{"data.eval": []}), **{"data.eval.fraction": 0.5}).data.eval.fraction == 0.5
    limited = make(**{"data.train.0.limit": {"questions": 3}})
    assert Config.from_any(limited, **{"data.train.0.limit": {"pairs": 5}}).data.train[0].limit.pairs == 5


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"model: {path", "line 1"),
        (b"a: 1\na: 2", "'a' is repeated"),
        (b"1: 2", "1 is used as a key"),
        (b"- 1", "a mapping of keys"),
        (b"", "a mapping of keys"),
        (b"\xff\xfe\xff", "not UTF-8"),
        (b"a: !!python/object:os.system x", "not valid YAML"),
        (b"a: 0b_", "not valid YAML"),
        (b"&a [*a]", "not valid YAML"),
        (b"[" * 1500, "not valid YAML"),
    ],
)
def test_damaged_files(tmp_path, text, part):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=part) as caught:
        config.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "/", "no/such/file.yaml"])
def test_no_such_file(name):
    with pytest.raises(UserError, match="no such file"):
        config.load(name)
