"""INCLUDE, CulturalBench, FORK and any table; the examples before a question; scores.

Also tests `evaluation/tasks/results.py`.
"""

import pytest

from care_jax.errors import UserError
from tests.evaluation.tasks.helpers import INCLUDE, OPTIONS, answer, read, result, write, write_lines


def test_include_of_both_revisions_and_both_prompts(tmp_path):
    listed = INCLUDE | {"choices": OPTIONS}
    columns = INCLUDE | {f"option_{letter}": one for letter, one in zip("abcd", OPTIONS)}
    path = write_lines(tmp_path / "a.jsonl", [listed, columns])
    task_items = read("include", path)
    prompt = "The following is multiple-choice question about STEM.光速？\nA. 一\nB. 二\nC. 三\n D. 四\nAnswer:"
    assert [item.prompt for item in task_items.items] == [prompt, prompt]  # the space before D. is lm-eval's
    assert task_items.items[0].choices == (" A", " B", " C", " D")
    strict = read("include", path, mode="strict")
    assert strict.items[0].prompt == (
        "The following is multiple-choice question about STEM.\n\n光速？\nA. 一\nB. 二\nC. 三\nD. 四\nAnswer:"
    )
    scores = result("include", path, [answer("0", logps=(-3.0, -2.0, -1.0, -4.0)), answer("1", "答案：ب")])
    assert scores["score"] == 0.5
    assert scores["by"]["regional_feature"] == {"agnostic": 0.5}
    assert scores["by"]["culture"] == {"chinese": 0.5}


def test_culturalbench_easy_and_hard_by_their_columns(tmp_path):
    easy = write(
        tmp_path / "easy.csv",
        "data_idx,question_idx,prompt_question,prompt_option_a,prompt_option_b,prompt_option_c,prompt_option_d,answer,country\n"
        "0,0,Which drink?,tea,milk,wine,beer,A,China\n1,1,Which food?,rice,bread,corn,oats,B,Japan\n",
    )
    scores = result("culturalbench", easy, [answer("0", "A"), answer("1", "A")])
    assert (scores["score"], scores["by"]["country"]) == (0.5, {"China": 1.0, "Japan": 0.0})
    hard = write(
        tmp_path / "hard.csv",
        "data_idx,question_idx,prompt_question,prompt_option,answer,country\n"
        + "".join(f"{4 * q + o},{q},Which drink?,o{o},{o == 0},China\n" for q in range(3) for o in range(4)),
    )
    answers = [answer(str(i), "True" if i % 4 == 0 else "False.") for i in range(8)]
    answers[5] = answer("5", "It is **True**")  # one of four wrong: the question does not count
    scores = result("culturalbench", hard, answers)
    assert (scores["n"], scores["missing"]) == (3, 1)
    assert scores["score"] == pytest.approx(1 / 3)
    assert result("culturalbench_hard", hard, answers, limit=1)["n"] == 1


def test_fork_has_two_options(tmp_path):
    path = write(
        tmp_path / "fork.csv",
        "ID,Question,Option A,Option B,Answer Key,Country,Type,Dimension\n7,Which?,spoon,hands,B,India,x,custom\n",
    )
    assert read("fork", path).items[0].choices == (" A", " B")
    assert result("fork", path, [answer("7", "hands")])["score"] == 1.0


@pytest.mark.parametrize("right", [1, "1", "B", "b", "Option B", "bread"])
def test_the_right_option_may_be_an_index_a_letter_or_its_text(tmp_path, right):
    path = write_lines(tmp_path / "a.jsonl", [{"question": "q", "options": ["rice", "bread"], "answer": right}])
    assert read("mcq", path).items[0].right == (1,)


def test_any_table_by_a_column_map(tmp_path):
    path = write(tmp_path / "a.csv", "frage,w1,w2,loesung\nq,ja,nein,nein\n")
    columns = {"question": "frage", "option_a": "w1", "option_b": "w2", "answer": "loesung"}
    assert result("mcq", path, [answer("0", "B")], columns=columns)["score"] == 1.0
    with pytest.raises(UserError, match=r"row 0.*no question, answer; its columns are frage, w1"):
        read("mcq", path)


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


def test_no_answer_is_missing_and_an_unreadable_one_failed(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", [{"question": f"q{i}", "choices": ["x", "y"], "answer": 0} for i in range(4)]
    )
    scores = result("mcq", path, [answer("0", "A"), answer("1", "no idea"), answer("2", "B"), answer("9", "A")])
    assert (scores["n"], scores["missing"], scores["failed"], scores["unmatched"]) == (4, 1, 1, 1)
    assert scores["score"] == 0.25
