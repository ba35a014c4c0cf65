"""What an answers file must hold to be continued; the answers themselves are tested by `tests/cli/test_models.py`."""

import json

import pytest

from care_jax.errors import UserError
from care_jax.evaluation.answers import generate
from care_jax.evaluation.answers.prompts import PromptRow

PROMPTS = [PromptRow(number, {"id": number}, "Tea is") for number in (4, 7)]


def line(number, system="m"):
    return json.dumps({"id": number, "response": "r", "finish_reason": "stop", "system": system}) + "\n"


def count(path, text):
    path.write_text(text)
    return generate._count_written(path, PROMPTS, 2, "m")


def test_complete_lines_are_counted_and_the_rest_is_cut_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    assert count(path, line(4) + line(4) + line(7) + line(7)[:9]) == 3
    assert path.read_text() == line(4) + line(4) + line(7)
    assert generate._count_written(tmp_path / "new" / "answers.jsonl", PROMPTS, 2, "m") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line(4) * 2 + line(4), r"\(line 3\): the answer to another row than row 7 of the input"),
        (line(4, system="other"), "found an answer of 'other', expected 'm'"),
        (line(4) * 2 + line(7) * 3, "more answers than the 2 prompts need"),
        ("tea\n", "not JSON"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        count(tmp_path / "answers.jsonl", text)
    assert (tmp_path / "answers.jsonl").read_text() == text
