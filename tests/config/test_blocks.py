"""The blocks: their defaults, and what they refuse."""

import pytest

from care_jax.config import Config
from tests.config.test_config import make, refused


def test_defaults():
    resolved = make()
    assert resolved.output_dir == "runs/run"
    assert resolved.loss.name == "dpo"
    assert resolved.losses == (resolved.loss,)
    assert resolved.data.eval.fraction == 0.05
    assert resolved.data.pairs.policy == "best_worst"
    assert resolved.optimizer.learning_rate == 5e-7
    assert resolved.batch.examples == 128
    assert resolved.trackers == ("tensorboard",)
    assert resolved.model.lora is None
    assert resolved.profile is None
    assert resolved.checkpoint.every == 0.25


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        make().batch.examples = 3


def test_a_list_of_losses():
    resolved = make(loss=[{"name": "dpo", "beta": 0.2}, {"name": "sft", "weight": 0.5}])
    assert [(each.name, each.weight) for each in resolved.losses] == [("dpo", 1.0), ("sft", 0.5)]
    assert Config.from_any(resolved, **{"loss.1.weight": 2}).losses[1].weight == 2
    assert Config.from_any(resolved, **{"loss.name": "kto"}).loss.name == "kto"


def test_a_loss_of_your_own(tmp_path, monkeypatch):
    text = (
        "def mine(chosen_logps, rejected_logps, *, slope=2.0, sides=3):\n    return rejected_logps - chosen_logps, {}\n"
    )
    (tmp_path / "loss_of_config_test.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    resolved = make(loss={"name": "loss_of_config_test:mine", "slope": "1e-1"})
    assert resolved.loss.hyperparameters == {"slope": 0.1, "sides": 3}
    assert "loss.slop:" in refused(loss={"name": "loss_of_config_test:mine", "slop": 1})


def test_kto_needs_two_responses_per_step():
    assert "batch.examples: found 1" in refused(**{"loss.name": "kto", "batch.examples": 1})
