"""The readers of public sets, each on rows with its documented fields."""

import pytest

from care_jax.data import readers
from tests.data.care_rows import counts, texts, write


def test_ultrafeedback(tmp_path):
    completion = {
        "model": "alpaca-7b",
        "response": "good",
        "overall_score": 7.5,
        "annotations": {},
        "fine-grained_score": 4.0,
    }
    rows = [
        {
            "source": "sharegpt",
            "instruction": "q",
            "models": ["a", "b", "c", "d"],
            "completions": [
                completion,
                completion | {"model": "bard", "response": "bad", "overall_score": "2"},
                completion | {"response": None},
                completion | {"overall_score": None},
                "nonsense",
            ],
        },
        {"instruction": "q2", "completions": []},
        {"instruction": "q3"},
    ]
    reading = readers.read("ultrafeedback", write(tmp_path, rows))
    (question,) = reading.questions
    assert texts(question) == [("good", 7.5, "alpaca-7b"), ("bad", 2.0, "bard")]
    assert counts(reading) == {"empty_response": 2, "invalid_rating": 1, "unreadable": 1, "missing_field": 1}


def test_ultrafeedback_binarized(tmp_path):
    user = {"role": "user", "content": "q"}
    rows = [
        {
            "prompt": "q",
            "prompt_id": "x",
            "chosen": [user, {"role": "assistant", "content": "a"}],
            "rejected": [user, {"role": "assistant", "content": "b"}],
            "messages": [user],
            "score_chosen": 8.0,
            "score_rejected": 8.0,
        }
    ]
    (question,) = readers.read("preferences", write(tmp_path, rows)).questions
    assert question.prompt == (user,)
    assert texts(question) == [("a", 1.0, "chosen"), ("b", 0.0, "rejected")]


def oasst(identity, parent, text, role="assistant", **more):
    row = {"message_id": identity, "parent_id": parent, "text": text, "role": role, "lang": "zh"}
    return row | {"rank": None, "deleted": False, "review_result": True} | more


def test_oasst(tmp_path):
    rows = [
        oasst("c", "b", "第二", rank=1),
        oasst("a", None, "问", "prompter"),
        oasst("b", "a", "答", rank=0),
        oasst("d", "a", "坏", rank=1),
        oasst("e", "b", "再问", "prompter"),
        oasst("f", "e", "好", rank=0),
        oasst("g", "e", "差", rank=2),
        oasst("h", "e", "删", rank=1, deleted=True),
        oasst("i", "e", "無", rank=None),
        oasst("j", "nowhere", "迷", rank=0),
        oasst("k", None, "es", "prompter", lang="es"),
        oasst("l", "k", "hola", rank=0, lang="es"),
    ]
    reading = readers.read("oasst", write(tmp_path, rows))
    first, second = (q for q in reading.questions if len(q.responses) == 2)
    assert texts(first) == [("答", 2.0, "human"), ("坏", 1.0, "human")]
    assert [m["role"] for m in second.prompt] == ["user", "assistant", "user"]
    assert texts(second) == [("好", 3.0, "human"), ("差", 1.0, "human")]
    assert counts(reading) == {"not_reviewed": 1, "invalid_rating": 1, "empty_question": 1}
    chinese = readers.read("oasst", write(tmp_path, rows), cultures=["zh"])
    assert {q.language for q in chinese.questions} == {"zh"}
    assert counts(chinese)["not_selected"] == 1


def test_prism(tmp_path):
    def said(turn, content, score=None, chosen=None, role="model", model="m"):
        base = {"turn": turn, "role": role, "content": content, "within_turn_id": 0, "model_name": model}
        return base | {"score": score, "if_chosen": chosen}

    history = [
        said(0, "hello", role="user"),
        said(0, "one", 80, True, model="gpt-4"),
        said(0, "two", 20, False),
        said(0, "three", None, False),
        said(1, "more", role="user"),
        said(1, "four", 90, True),
        said(1, "five", 10, False),
    ]
    unchosen = [said(0, "q", role="user"), said(0, "a", 5, False), said(1, "r", role="user"), said(1, "b", 5, True)]
    rows = [{"conversation_id": "c1", "user_id": "u", "conversation_history": history}]
    rows += [{"conversation_history": unchosen}, {"conversation_history": "x"}, {"user_id": "u"}]
    rows += [{"conversation_history": [said(0, "only a model", 5, True)]}]
    reading = readers.read("prism", write(tmp_path, rows))
    first, second, third = reading.questions
    assert texts(first) == [("one", 80.0, "gpt-4"), ("two", 20.0, "m")]
    assert [m["content"] for m in second.prompt] == ["hello", "one", "more"]
    assert texts(second) == [("four", 90.0, "m"), ("five", 10.0, "m")]
    assert texts(third) == [("a", 5.0, "m")]
    assert counts(reading) == {"invalid_rating": 1, "missing_field": 2, "empty_response": 1, "empty_question": 1}


def test_helpsteer(tmp_path):
    row = {
        "prompt": "q",
        "response": "a",
        "helpfulness": 4,
        "correctness": 3,
        "coherence": 4,
        "complexity": 1,
        "verbosity": 2,
    }
    reading = readers.read("helpsteer", write(tmp_path, [row, row | {"response": "b", "helpfulness": 0}]))
    (question,) = reading.questions
    assert texts(question) == [("a", 4.0, "unknown"), ("b", 0.0, "unknown")]
    assert counts(reading) == {}


def test_cvalues_comparison(tmp_path):
    row = {"prompt": "问", "pos_resp": "好", "neg_resp": "坏", "pos_type": "拒绝", "neg_type": "风险回复"}
    (question,) = readers.read("cvalues", write(tmp_path, [row])).questions
    assert words_of_text(question) == [("好", "chosen"), ("坏", "rejected")]


def words_of_text(question):
    return [(r.content, r.field) for r in question.responses]


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "language"),
    [
        ({"inputs": "q", "targets": "a", "language": "Standard Arabic", "language_code": "arb"}, "q", "a", "arb"),
        ({"index": 1, "instruction": "q", "output": "a"}, "q", "a", None),
        ({"instruction": "q", "input": "more", "output": "a", "country": "Arab"}, "q\n\nmore", "a", "ar"),
        ({"cultural group": "Arab", "eval_question": "q", "eval_whole_desc": "a", "topic": "t"}, "q", "a", "ar"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "q", "a", None),
    ],
)
def test_sft(tmp_path, row, prompt, answer, language):
    reading = readers.read("sft", write(tmp_path, [row, {"inputs": "q"}]))
    (question,) = reading.questions
    assert question.prompt == ({"role": "user", "content": prompt},)
    assert question.responses[0].content == ({"role": "assistant", "content": answer},)
    assert question.responses[0].desirable is True
    assert question.language == language
    assert counts(reading) == {"missing_field": 1}


def test_a_map_for_assertions(tmp_path):
    row = {"subject": "China", "facet": "food", "assertion": "Tea is offered to guests."}
    columns = {"question": "subject", "reference": "assertion"}
    reading = readers.read("care_eval", write(tmp_path, [row]), columns=columns)
    assert [(q.prompt[0]["content"], q.reference) for q in reading.questions] == [("China", row["assertion"])]
