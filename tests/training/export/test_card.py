"""The model card: what it says of data, training, evaluation and versions."""

import json

import pytest
import yaml

from care_jax import config as configs
from care_jax.training.export.card import card
from tests.training.run.test_resume import config_of

MANIFEST = {
    "versions": {"jax": "1.2.3"},
    "data": [{"path": "sample", "licence": "MIT"}],
    "data_sha256": {"care.jsonl": "1" * 64},
    "model": {"licence": "Apache-2.0"},
    "seed": 0,
}
REPORT = {
    "questions": 7,
    "responses": 50,
    "dropped": {"duplicate": 2, "unreadable": 0},
    "by": {"culture": {"arab": 3, "elsewhere": 4}, "category": {"norms": 7}},
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text(configs.dump(config_of(tmp_path, name="a run")))
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "data_report.json").write_text(json.dumps(REPORT))
    return tmp_path


def test_the_front_matter_is_what_the_hub_reads(run):
    text = card(run)
    _, front_matter, body = text.split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["care_jax", "preference-learning", "dpo"],
        "language": ["ar"],
    }
    assert body.startswith("\n# a run\n\nsample trained on human preferences with care_jax (dpo).\n")


def test_the_sections(run):
    text = card(run)
    assert "| sample | care | - | MIT | 1 |" in text
    assert "7 questions, 50 responses read; dropped: 2 duplicate.\nBy culture: arab 3, elsewhere 4.\n" in text
    assert f"- `care.jsonl` sha256 `{'1' * 64}`\n\n## Training\n" in text
    assert "| loss | dpo(beta=0.1, label_smoothing=0.0) |" in text
    assert "## Evaluation\n\nNone was run during training.\n" in text
    assert '"jax": "1.2.3"' in text
    assert "{" not in text.split("```json")[0]


def test_an_evaluation_is_a_table(run):
    lines = [{"step": step, "eval/loss": 0.7 - step, "eval/logps/accuracies": 0.5} for step in (0, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Preferences on questions held out of training:\n\n```\n" in card(run)
