"""Few-shot examples before a question."""

import pytest

from care_jax.errors import UserError
from tests.evaluation.tasks.helpers import INCLUDE, OPTIONS, read, write_lines


def test_examples_stand_before_a_question_and_are_of_its_kind(tmp_path):
    """That the text is lm-evaluation-harness's is tested in test_lm_eval.py."""
    rows = [
        INCLUDE | {"question": name, "domain": domain, "choices": OPTIONS, "answer": number % 4}
        for number, (name, domain) in enumerate([("a", "STEM"), ("b", "Arts"), ("c", "STEM"), ("d", "STEM")])
    ]
    path, examples = write_lines(tmp_path / "a.jsonl", rows[:1]), write_lines(tmp_path / "b.jsonl", rows)
    (item,) = read("include", path, num_fewshot=2, fewshot=examples).items
    options = "\nA. 一\nB. 二\nC. 三\n D. 四\nAnswer:"
    about = "The following are multiple-choice questions (with answers) about STEM."
    assert item.prompt == f"{about}c{options} C\n\nd{options} D\n\na{options}"  # never the question itself
    (plain,) = read("mcq", path, num_fewshot=1, fewshot=examples).items
    assert plain.prompt.startswith("c\nA. 一\nB. 二\nC. 三\nD. 四\nAnswer: C\n\na\nA.")
    with pytest.raises(UserError, match=r"b.jsonl has 2 example\(s\) of Chinese, STEM besides a, expected 3"):
        read("include", path, num_fewshot=3, fewshot=examples)
    # Only the questions that are asked need examples; one asked twice is one example.
    both = write_lines(tmp_path / "c.jsonl", rows[:2])
    (limited,) = read("include", both, num_fewshot=2, fewshot=examples, limit=1).items
    assert limited == item
    twice = write_lines(tmp_path / "d.jsonl", [rows[0], rows[0], rows[2], rows[2], rows[3]])
    assert read("include", path, num_fewshot=2, fewshot=twice).items == [item]
    with pytest.raises(UserError, match="--num-fewshot: examples are taken from --fewshot FILE"):
        read("mcq", path, num_fewshot=1)
    with pytest.raises(UserError, match="geomlama takes no examples; include, "):
        read("geomlama", path, num_fewshot=1, fewshot=examples)
