"""CARE's evaluation questions and their ratings."""

from care_jax.evaluation.answers.responses import Answer
from tests.evaluation.tasks.helpers import read, result


def test_care_eval_items_and_ratings(shared):
    data = str(shared / "data" / "care_eval")
    task_items = read("care_eval", data)
    assert len(task_items.items) == 450
    assert task_items.items[0].id == "arab-0001"
    assert task_items.items[0].fields["reference"].startswith("نعم")
    answers = [
        Answer({"rating": 8.0}, task_items.items[0].id, None, "x", None, None),
        Answer({"rating": 5.0}, None, task_items.items[1].question, "x", None, None),
        Answer({"rating": None, "judge_failed": "no rating"}, task_items.items[2].id, None, "x", None, None),
        Answer({}, task_items.items[3].id, None, "x", None, None),
    ]
    scores = result("care_eval", data, answers)
    assert (scores["score"], scores["n"], scores["missing"], scores["failed"]) == (6.5, 450, 446, 1)
