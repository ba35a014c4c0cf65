"""Leakage: the same question, near copies, and questions that only share a template."""

import pytest

from care_jax.data import readers
from care_jax.data.curation.leakage import check, check_json, check_text
from care_jax.data.questions import Question, question_key


def ask(text, culture="chinese", reference=None):
    return Question(({"role": "user", "content": text},), (), question_key(text, culture), culture, reference=reference)


def kinds(train, against):
    return [overlap.kind for overlap in check([ask(*train)], [ask(*against)])]


LONG = "What is the most famous traditional dish that people in {} like to cook for their families at New Year?"


@pytest.mark.parametrize(
    ("train", "against", "expected"),
    [
        (("为什么中国人不喜欢数字4？",), ("为什么中国人不喜欢数字４? ",), ["same"]),
        (("为什么中国人不喜欢数字4？",), ("为什么中国人不喜欢数字4",), ["near"]),
        (("Why do people in China drink hot water",), ("Why do people in China drink hot water, please?",), ["near"]),
        (("Why do people in China drink hot water",), ("Why do people in Japan drink green tea",), []),
        ((LONG.format("Hebei"),), (LONG.format("Hebei").lower().rstrip("?") + " ?!",), ["near"]),
        ((LONG.format("Hebei"),), (LONG.format("Hebei").replace("families", "familys"),), ["near"]),
        ((LONG.format("Hebei"),), (LONG.format("Henan Province"),), []),
        ((LONG.format("Hebei"), "chinese", "dumplings"), (LONG.format("Yunnan"), "chinese", "Dumplings."), ["near"]),
        ((LONG.format("Hebei"), "chinese", "dumplings"), (LONG.format("Yunnan"), "chinese", "rice noodles"), []),
        (("河北有哪些著名的旅游景点？",), ("河南有哪些著名的旅游景点？",), []),
        (("same words", "chinese"), ("same words", "arab"), []),
        (("same words", None), ("same words", "arab"), ["same"]),
        (
            ("هل يُتوقع أن تقوم العائلة بإقامة احتفال؟", "arab"),
            ("هل يتوقع ان تقوم العائلة بإقامة احتفال؟", "arab"),
            ["near"],
        ),
    ],
)
def test_what_is_a_copy(train, against, expected):
    assert kinds(train, against) == expected


def test_the_last_turn_of_a_conversation_is_compared():
    turns = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "Why 4?"},
    )
    conversation = Question(turns, (), question_key(turns, None))
    assert [o.kind for o in check([conversation], [ask("Why 4?")])] == ["same"]


def test_token_ids_are_compared_as_a_whole():
    one, other = ((tuple(range(n, n + 50))) for n in (1, 2))
    train = [Question(ids, (), question_key(ids, None)) for ids in (one, other)]
    assert [o.kind for o in check(train, train[:1])] == ["same"]


def test_reports():
    overlaps = check([ask("a b c")], [ask("A b  c")])
    assert check_json(overlaps)["same"] == 1
    assert "1 the same, 0 near" in check_text(overlaps)
    assert check_text([]).startswith("no training question")


def test_real_training_rows_stand_in_the_evaluation_set(shared):
    train = readers.read("care", str(shared / "data/care_rated.jsonl")).questions
    items = readers.read("care_eval", str(shared / "data/care_eval")).questions
    assert [o.kind for o in check(train, items)] == ["same"] * 450
    # Questions of one template are not copies of each other.
    halves = items[::2], items[1::2]
    assert check(*halves) == []
