"""Which keys change a run's numbers, and which only round them."""

from care_jax import config
from tests.config.test_config import make


def test_differences():
    base = make()
    equal = make(name="other", **{"mesh.fsdp": 4, "batch.microbatch_rows": 2, "model.remat": "none", "log_every": 5})
    assert config.refusing_differences(base, equal) == {}
    assert config.numeric_hash(base) == config.numeric_hash(equal)
    other = make(**{"loss.beta": 0.2, "seed": 1, "data.train.0.weight": 2})
    expected = {"seed": (0, 1), "data.train.0.weight": (1.0, 2.0), "loss.beta": (0.1, 0.2)}
    assert config.refusing_differences(base, other) == expected
    assert config.numeric_hash(base) != config.numeric_hash(other)


def test_what_rounds_is_distinguished_from_what_changes_nothing():
    base = make()
    assert config.rounding_differences(base, make(name="other", log_every=5, **{"checkpoint.keep": 9})) == {}
    moved = make(**{"mesh.fsdp": 4, "batch.microbatch_rows": 2})
    changed = config.rounding_differences(base, moved)
    assert set(changed) == {"mesh", "batch.microbatch_rows"}
    assert changed["batch.microbatch_rows"] == (8, 2)
