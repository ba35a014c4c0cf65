"""Readers and scores of questions with options, cloze prompts and pairs of statements."""

import json

import pytest

from care_jax.errors import UserError
from care_jax.evaluation import tasks
from care_jax.evaluation.answers.responses import Answer
from care_jax.evaluation.items import Options


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def said(id_, text=None, logps=None):
    return Answer({}, id_, None, text, logps, "one")


def read(name, path, **options):
    task, own = tasks.find(name, Options(**options))
    return task, own, tasks.read(task, path, own)


def result(name, path, answers, **options):
    task, own, taken = read(name, path, **options)
    return tasks.score(task, taken, answers, own)[0]


INCLUDE = {
    "language": "Chinese", "country": "China", "domain": "STEM", "subject": "Physics", "regional_feature": "agnostic",
    "level": "", "question": " 光速？ ", "answer": 2,
}  # fmt: skip
OPTIONS = ["一", "二", "三", "四"]


def test_include_of_both_revisions_and_both_prompts(tmp_path):
    listed = INCLUDE | {"choices": OPTIONS}
    columns = INCLUDE | {f"option_{letter}": one for letter, one in zip("abcd", OPTIONS)}
    path = jsonl(tmp_path / "a.jsonl", [listed, columns])
    _, _, taken = read("include", path)
    prompt = "The following is multiple-choice question about STEM.光速？\nA. 一\nB. 二\nC. 三\n D. 四\nAnswer:"
    assert [item.prompt for item in taken.items] == [prompt, prompt]  # the space before D. is lm-eval's
    assert taken.items[0].choices == (" A", " B", " C", " D")
    _, _, strict = read("include", path, mode="strict")
    assert strict.items[0].prompt == (
        "The following is multiple-choice question about STEM.\n\n光速？\nA. 一\nB. 二\nC. 三\nD. 四\nAnswer:"
    )
    found = result("include", path, [said("0", logps=(-3.0, -2.0, -1.0, -4.0)), said("1", "答案：ب")])
    assert found["score"] == 0.5
    assert found["by"]["regional_feature"] == {"agnostic": 0.5}
    assert found["by"]["culture"] == {"chinese": 0.5}


def test_examples_stand_before_a_question_and_are_of_its_kind(tmp_path):
    """lm-evaluation-harness's text: `tests/evaluation/test_lm_eval.py`."""
    rows = [
        INCLUDE | {"question": name, "domain": domain, "choices": OPTIONS, "answer": number % 4}
        for number, (name, domain) in enumerate([("a", "STEM"), ("b", "Arts"), ("c", "STEM"), ("d", "STEM")])
    ]
    path, examples = jsonl(tmp_path / "a.jsonl", rows[:1]), jsonl(tmp_path / "b.jsonl", rows)
    (item,) = read("include", path, num_fewshot=2, fewshot=examples)[2].items
    options = "\nA. 一\nB. 二\nC. 三\n D. 四\nAnswer:"
    about = "The following are multiple-choice questions (with answers) about STEM."
    assert item.prompt == f"{about}c{options} C\n\nd{options} D\n\na{options}"  # never the question itself
    (plain,) = read("mcq", path, num_fewshot=1, fewshot=examples)[2].items
    assert plain.prompt.startswith("c\nA. 一\nB. 二\nC. 三\nD. 四\nAnswer: C\n\na\nA.")
    with pytest.raises(UserError, match=r"b.jsonl has 2 example\(s\) of Chinese, STEM besides a, expected 3"):
        read("include", path, num_fewshot=3, fewshot=examples)
    # Only the questions that are asked need examples; one asked twice is one example.
    both = jsonl(tmp_path / "c.jsonl", rows[:2])
    (limited,) = read("include", both, num_fewshot=2, fewshot=examples, limit=1)[2].items
    assert limited == item
    twice = jsonl(tmp_path / "d.jsonl", [rows[0], rows[0], rows[2], rows[2], rows[3]])
    assert read("include", path, num_fewshot=2, fewshot=twice)[2].items == [item]
    with pytest.raises(UserError, match="--num-fewshot: examples are taken from --fewshot FILE"):
        read("mcq", path, num_fewshot=1)
    with pytest.raises(UserError, match="geomlama takes no examples; include, "):
        read("geomlama", path, num_fewshot=1, fewshot=examples)


def test_lm_eval_names_choose_the_language(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl", [INCLUDE | {"choices": OPTIONS, "language": name} for name in ("Arabic", "Chinese")]
    )
    _, _, taken = read("include_base_44_arabic", path)
    assert [item.groups["language"] for item in taken.items] == ["Arabic"]
    with pytest.raises(UserError, match="no 'korean'"):
        read("include_base_44_korean", path)


def test_culturalbench_easy_and_hard_by_their_columns(tmp_path):
    easy = write(
        tmp_path / "easy.csv",
        "data_idx,question_idx,prompt_question,prompt_option_a,prompt_option_b,prompt_option_c,prompt_option_d,answer,country\n"
        "0,0,Which drink?,tea,milk,wine,beer,A,China\n1,1,Which food?,rice,bread,corn,oats,B,Japan\n",
    )
    found = result("culturalbench", easy, [said("0", "A"), said("1", "A")])
    assert (found["score"], found["by"]["country"]) == (0.5, {"China": 1.0, "Japan": 0.0})
    hard = write(
        tmp_path / "hard.csv",
        "data_idx,question_idx,prompt_question,prompt_option,answer,country\n"
        + "".join(f"{4 * q + o},{q},Which drink?,o{o},{o == 0},China\n" for q in range(3) for o in range(4)),
    )
    answers = [said(str(i), "True" if i % 4 == 0 else "False.") for i in range(8)]
    answers[5] = said("5", "It is **True**")  # one of four wrong: the question does not count
    found = result("culturalbench", hard, answers)
    assert (found["n"], found["missing"]) == (3, 1)
    assert found["score"] == pytest.approx(1 / 3)
    assert result("culturalbench_hard", hard, answers, limit=1)["n"] == 1


def test_fork_has_two_options(tmp_path):
    path = write(
        tmp_path / "fork.csv",
        "ID,Question,Option A,Option B,Answer Key,Country,Type,Dimension\n7,Which?,spoon,hands,B,India,x,custom\n",
    )
    task, own, taken = read("fork", path)
    assert taken.items[0].choices == (" A", " B")
    assert tasks.score(task, taken, [said("7", "hands")], own)[0]["score"] == 1.0


def test_geomlama_counts_the_overlap_of_the_best_n(tmp_path):
    path = write(
        tmp_path / "gd_prompt_en.tsv",
        "Prompt\tCorresponding Questions\tAns\tCandidate Ans\tContext\n"
        "In China people eat with <mask>.\tWhat do they eat with?\tchopsticks, spoons\tforks, chopsticks, spoons\t\n"
        "\t\t\t\t\nIn Japan <mask> is drunk.\tWhat is drunk?\ttea\ttea，coffee\t\n",
    )
    _, _, taken = read("geomlama", path)
    assert [item.choices[0] for item in taken.items] == ["In China people eat with forks.", "In Japan tea is drunk."]
    ids = [item.id for item in taken.items]
    assert all(item.standalone for item in taken.items)
    found = result("geomlama", path, [said(ids[0], logps=(-1.0, -2.0, -3.0)), said(ids[1], "Coffee, then tea")])
    assert found["score"] == pytest.approx((0.5 + 0.0) / 2)


@pytest.mark.parametrize("answer", [1, "1", "B", "b", "Option B", "bread"])
def test_right_options_are_named_in_many_ways(tmp_path, answer):
    path = jsonl(tmp_path / "a.jsonl", [{"question": "q", "options": ["rice", "bread"], "answer": answer}])
    _, _, taken = read("mcq", path)
    assert taken.items[0].right == (1,)


def test_any_table_by_a_column_map(tmp_path):
    path = write(tmp_path / "a.csv", "frage,w1,w2,loesung\nq,ja,nein,nein\n")
    columns = {"question": "frage", "option_a": "w1", "option_b": "w2", "answer": "loesung"}
    assert result("mcq", path, [said("0", "B")], columns=columns)["score"] == 1.0
    with pytest.raises(UserError, match=r"row 0.*no question, answer; its columns are frage, w1"):
        read("mcq", path)


def test_nothing_said_is_missing_and_nonsense_failed(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"question": f"q{i}", "choices": ["x", "y"], "answer": 0} for i in range(4)])
    found = result("mcq", path, [said("0", "A"), said("1", "no idea"), said("2", "B"), said("9", "A")])
    assert (found["n"], found["missing"], found["failed"], found["unmatched"]) == (4, 1, 1, 1)
    assert found["score"] == 0.25


def test_cloze_is_the_share_of_pairs_that_prefer_the_foreign_name(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            {"prompt": "أكلت [MASK] اليوم", "native": ["كسكسي", "فول"], "foreign": "pizza", "type": "food"},
            {"prompt": "My friend", "native": "Omar", "foreign": "John|Mary", "type": "names"},
        ],
    )
    _, _, taken = read("cloze", path)
    assert taken.items[0].standalone
    assert taken.items[0].choices[2] == "أكلت pizza اليوم"
    assert (taken.items[1].prompt, taken.items[1].choices[1]) == ("My friend", " John")
    found = result("cloze", path, [said("0", logps=(-1.0, -3.0, -2.0)), said("1", logps=(-1.0, -2.0, -3.0))])
    assert found["score"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["by"]["type"] == {"food": 0.5, "names": 0.0}


def test_camels_tables_meet_by_type(tmp_path):
    write(tmp_path / "camelag-prompts.csv", "Prompt,Type\nأحب [MASK],food\n")
    write(tmp_path / "entities.csv", "Entity,Type,Culture\nكسكسي,food,Arab\nبيتزا,food,Western\n")
    _, _, taken = read("cloze", str(tmp_path))
    assert taken.items[0].choices == ("أحب كسكسي", "أحب بيتزا")
    assert taken.items[0].right == (0,)


def test_statement_pairs(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"stereotype": "a", "contrast": "b", "language": "en"} for _ in range(2)])
    found = result("statement_pairs", path, [said("0", logps=(-1.0, -2.0)), said("1", logps=(-2.0, -1.0))])
    assert found["score"] == 0.5
    path = jsonl(tmp_path / "b.jsonl", [{"question": "q", "choices": ["x", "y"], "answer": 0}])
    with pytest.raises(UserError, match="1 logps for 2 options"):
        result("mcq", path, [said("0", logps=(-1.0,))])


def test_a_task_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"found 'inclade' \(did you mean 'include'\?\)"):
        tasks.find("inclade", Options())
    with pytest.raises(UserError, match="fork needs its file"):
        tasks.read(tasks.TASKS["fork"], None, Options())


def test_care_eval_items_and_ratings(shared):
    task, own, taken = read("care_eval", str(shared / "data" / "care_eval"))
    assert len(taken.items) == 450
    assert taken.items[0].id == "arab-0001"
    assert taken.items[0].fields["reference"].startswith("نعم")
    answers = [
        Answer({"rating": 8.0}, taken.items[0].id, None, "x", None, None),
        Answer({"rating": 5.0}, None, taken.items[1].question, "x", None, None),
        Answer({"rating": None, "judge_failed": "no rating"}, taken.items[2].id, None, "x", None, None),
        Answer({}, taken.items[3].id, None, "x", None, None),
    ]
    found, _ = tasks.score(task, taken, answers, own)
    assert (found["score"], found["n"], found["missing"], found["failed"]) == (6.5, 450, 446, 1)
