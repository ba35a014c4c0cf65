"""Scores of multiple-choice tasks."""

from tests.evaluation.tasks.helpers import answer, result, write_lines


def test_no_answer_is_missing_and_an_unreadable_one_failed(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", [{"question": f"q{i}", "choices": ["x", "y"], "answer": 0} for i in range(4)]
    )
    scores = result("mcq", path, [answer("0", "A"), answer("1", "no idea"), answer("2", "B"), answer("9", "A")])
    assert (scores["n"], scores["missing"], scores["failed"], scores["unmatched"]) == (4, 1, 1, 1)
    assert scores["score"] == 0.25
