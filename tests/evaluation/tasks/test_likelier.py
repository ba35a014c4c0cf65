"""Cloze prompts and pairs of statements."""

import pytest

from care_jax.errors import UserError
from tests.evaluation.tasks.helpers import answer, read, result, write, write_lines


def test_cloze_is_the_share_of_pairs_that_prefer_the_foreign_name(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            {"prompt": "أكلت [MASK] اليوم", "native": ["كسكسي", "فول"], "foreign": "pizza", "type": "food"},
            {"prompt": "My friend", "native": "Omar", "foreign": "John|Mary", "type": "names"},
        ],
    )
    task_items = read("cloze", path)
    assert task_items.items[0].standalone
    assert task_items.items[0].choices[2] == "أكلت pizza اليوم"
    assert (task_items.items[1].prompt, task_items.items[1].choices[1]) == ("My friend", " John")
    scores = result("cloze", path, [answer("0", logps=(-1.0, -3.0, -2.0)), answer("1", logps=(-1.0, -2.0, -3.0))])
    assert scores["score"] == pytest.approx((0.5 + 0.0) / 2)
    assert scores["by"]["type"] == {"food": 0.5, "names": 0.0}


def test_camels_tables_are_joined_by_type(tmp_path):
    write(tmp_path / "camelag-prompts.csv", "Prompt,Type\nأحب [MASK],food\n")
    write(tmp_path / "entities.csv", "Entity,Type,Culture\nكسكسي,food,Arab\nبيتزا,food,Western\n")
    task_items = read("cloze", str(tmp_path))
    assert task_items.items[0].choices == ("أحب كسكسي", "أحب بيتزا")
    assert task_items.items[0].right == (0,)


def test_statement_pairs(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"stereotype": "a", "contrast": "b", "language": "en"} for _ in range(2)])
    scores = result("statement_pairs", path, [answer("0", logps=(-1.0, -2.0)), answer("1", logps=(-2.0, -1.0))])
    assert scores["score"] == 0.5
    path = write_lines(tmp_path / "b.jsonl", [{"question": "q", "choices": ["x", "y"], "answer": 0}])
    with pytest.raises(UserError, match="1 logps for 2 options"):
        result("mcq", path, [answer("0", logps=(-1.0,))])
