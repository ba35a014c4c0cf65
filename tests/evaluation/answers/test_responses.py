"""Answers read from files, and the items that they answer."""

import json

import pytest

from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import match_answers, read_answers
from care_jax.evaluation.items import Item

ITEMS = [Item("1", "Tea?", ""), Item("2", "Rice?", ""), Item("3", "Rice?", "")]


def write(tmp_path, *rows):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_answer_names_its_item_by_id_or_by_a_question_that_only_one_item_has(tmp_path):
    rows = [
        {"ID": 2, "question": "Tea?", "completion": "by id", "model": "m"},
        {"question": " tea? ", "response": ["a", "list"], "system": "m"},
        {"question": "Rice?", "response": "two items have this question"},
        {"id": "9", "response": "no item has this id"},
        {"id": "3", "response": None},
        {"id": "3", "logps": ["-1.5", -2]},
    ]
    matched = match_answers(ITEMS, read_answers(write(tmp_path, *rows)))
    assert {id_: [answer.response for answer in answers] for id_, answers in matched.answers.items()} == {
        "2": ["by id"], "1": ['["a", "list"]'], "3": [None]
    }  # fmt: skip
    assert matched.answers["3"][0].logps == (-1.5, -2.0)
    assert (matched.unmatched, matched.systems) == (2, ("m",))


@pytest.mark.parametrize(
    ("row", "message"),
    [({"id": "1"}, "no response; its keys are id"), ({"logps": [1, "x"]}, "logps: expected a list of numbers")],
)
def test_a_line_without_a_usable_answer_is_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_answers(write(tmp_path, row))


def test_an_empty_file_holds_no_answers_and_a_missing_one_is_refused(tmp_path):
    assert read_answers(write(tmp_path)) == []
    with pytest.raises(UserError, match="no such file"):
        read_answers(str(tmp_path / "missing.jsonl"))
