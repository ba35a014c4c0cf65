"""What a run reads before anything is compiled: leakage, labels, and the report of what was dropped."""

import json

import pytest

from care_jax import cli, losses
from care_jax.config import Config
from care_jax.data import readers
from care_jax.data.chat import load_tokenizer
from care_jax.data.corpus import tokenize
from care_jax.errors import Leakage
from care_jax.training.data import prepare
from care_jax.training.objective import make_objective


def config_of(folder, train, held, **overrides):
    data = {"train": [train], "eval": [held]}
    model = {"path": "sample", "init": "random", "dtype": "float32"}
    return Config.from_any({"model": model, "data": data, "output_dir": str(folder / "run")}, **overrides)


def prepared(folder, train, held, **overrides):
    objective = make_objective([(losses.bind("dpo"), 1.0)])
    return prepare(config_of(folder, train, held, **overrides), load_tokenizer("sample"), objective, folder)


def test_training_questions_in_the_evaluation_set_end_the_run(tmp_path, capsys):
    recipe = tmp_path / "leak.yaml"
    sample = {"reader": "care", "path": "sample"}
    held = sample | {"cultures": ["arab"]}
    recipe.write_text(
        json.dumps({"model": {"path": "sample", "init": "random"}, "data": {"train": [sample], "eval": [held]}})
    )
    assert cli.main(["train", str(recipe), f"output_dir={tmp_path / 'run'}"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "training questions are in the evaluation data" in err
    assert "  same: " in err
    assert "Traceback" not in err


def test_another_evaluation_set_does_not(tmp_path):
    sample = {"reader": "care", "path": "sample"}
    made = prepared(tmp_path, sample | {"cultures": ["chinese"]}, sample | {"cultures": ["arab"]})
    assert made.held_out_questions > 0
    assert made.steps > 0


def test_care_with_its_own_evaluation_set_is_refused(tmp_path, shared):
    rated = {"reader": "care", "path": str(shared / "data" / "care_rated.jsonl")}
    held = {"reader": "care_eval", "path": str(shared / "data" / "care_eval")}
    with pytest.raises(Leakage, match="450 training questions are in the evaluation data: 450 the same"):
        prepared(tmp_path, rated, held)


@pytest.mark.parametrize("length", [64, 7, 4])
def test_a_pair_is_one_row_of_the_report(tmp_path, length):
    """rows = responses + everything dropped, also if the maximum length drops one side of a pair or both."""
    rows = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
        {"prompt_ids": [1, 2, 3, 4, 5, 6, 7], "chosen_ids": [4], "rejected_ids": [6, 7]},
        {"prompt_ids": [], "chosen_ids": [4], "rejected_ids": [6]},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = readers.read("tokenized", str(path))
    corpus = tokenize(reading.questions, load_tokenizer("sample"), max_length=length)
    for lost in corpus.dropped:
        reading.report.drop_truncated(lost.question, lost.response, lost.reason)
    account = reading.report.to_json()
    assert account["rows"] == 3
    assert account["rows"] == account["responses"] + sum(account["dropped"].values())
    assert account["responses"] == (2 if length == 64 else 1)


@pytest.mark.parametrize(
    ("labels", "desirable", "undesirable"),
    [
        (None, {10, 7}, {4, 1}),
        ({}, {10, 7}, {4, 1}),
        ({"desirable_min": 4.5}, {10, 7, 6.5, 4.5}, {4, 1}),
        ({"undesirable_max": 1}, {10, 7}, {1}),
        ({"desirable_min": 7.5, "undesirable_max": 6.5}, {10}, {6.5, 4.5, 4, 1}),
        ("best", {10}, set()),
    ],
)
def test_labels_by_ratings(tmp_path, labels, desirable, undesirable):
    """Both bounds are inclusive, ratings between them are left out, and a missing bound is the default."""
    ratings = [10, 7, 6.5, 4.5, 4, 1]
    about = {"cul_type": "Opinion", "associated_culture": "Native (Chinese)", "source": "human"}
    for name, kept in (("train", ratings), ("held", ratings[:1])):
        rows = [about | {"question": name, "response": f"{r} {name}", "human_rating": r} for r in kept]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"reader": "care", "path": str(tmp_path / f"{name}.jsonl")} for name in ("train", "held")]
    small = {"batch.examples": 1, "batch.row_length": 64, "batch.microbatch_rows": 2, "data.max_length": 64}
    config = config_of(tmp_path, *sources, **small, **({} if labels is None else {"data.labels": labels}))
    made = prepare(config, load_tokenizer("sample"), make_objective(losses.nll), tmp_path)
    found = {True: set(), False: set()}
    for unit in made.source.stream:
        response = made.corpus.questions[unit.question].responses[unit.responses[0]]
        found[unit.desirable].add(response.rating)
    assert found == {True: desirable, False: undesirable}
    assert made.labels == {"desirable": len(desirable), "undesirable": len(undesirable)}
