"""Which keys change a run's numbers, and which only round them."""

from care_jax import config
from tests.config.test_config import make


def test_differences():
    one = make()
    same = make(name="other", **{"mesh.fsdp": 4, "batch.microbatch_rows": 2, "model.remat": "none", "log_every": 5})
    assert config.numeric_differences(one, same) == {}
    assert config.numeric_hash(one) == config.numeric_hash(same)
    other = make(**{"loss.beta": 0.2, "seed": 1, "data.train.0.weight": 2})
    expected = {"seed": (0, 1), "data.train.0.weight": (1.0, 2.0), "loss.beta": (0.1, 0.2)}
    assert config.numeric_differences(one, other) == expected
    assert config.numeric_hash(one) != config.numeric_hash(other)


def test_what_rounds_is_told_apart_from_what_changes_nothing():
    one = make()
    assert config.rounding_differences(one, make(name="other", log_every=5, **{"checkpoint.keep": 9})) == {}
    moved = make(**{"mesh.fsdp": 4, "batch.microbatch_rows": 2})
    found = config.rounding_differences(one, moved)
    assert set(found) == {"mesh", "batch.microbatch_rows"}
    assert found["batch.microbatch_rows"] == (8, 2)
