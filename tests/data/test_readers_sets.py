"""Each further dataset from a fixture in its documented fields, and the table that `data list` prints."""

import json

import pytest

from care_jax.data import readers
from care_jax.data.curation.catalogue import datasets, list_text
from care_jax.data.readers.blend import country_language
from care_jax.errors import UserError
from care_jax.evaluation import tasks
from care_jax.evaluation.items import Options
from care_jax.evaluation.tasks import blend
from tests.data.rows import write


def account(reading):
    dropped = {reason: n for reason, n in reading.report.dropped.items() if n}
    kept = sum(r.field != "rejected" for q in reading.questions for r in q.responses)
    assert reading.report.rows == kept + sum(dropped.values())
    return dropped


def words(question):
    return [(r.content[0]["content"], r.rating, r.source) for r in question.responses]


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
    assert words(question) == [("good", 7.5, "alpaca-7b"), ("bad", 2.0, "bard")]
    assert account(reading) == {"empty_response": 2, "invalid_rating": 1, "unreadable": 1, "missing_field": 1}


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
    assert words(question) == [("a", 1.0, "chosen"), ("b", 0.0, "rejected")]


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
    assert words(first) == [("答", 2.0, "human"), ("坏", 1.0, "human")]
    assert [m["role"] for m in second.prompt] == ["user", "assistant", "user"]
    assert words(second) == [("好", 3.0, "human"), ("差", 1.0, "human")]
    assert account(reading) == {"not_reviewed": 1, "invalid_rating": 1, "empty_question": 1}
    chinese = readers.read("oasst", write(tmp_path, rows), cultures=["zh"])
    assert {q.language for q in chinese.questions} == {"zh"}
    assert account(chinese)["not_selected"] == 1


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
    assert words(first) == [("one", 80.0, "gpt-4"), ("two", 20.0, "m")]
    assert [m["content"] for m in second.prompt] == ["hello", "one", "more"]
    assert words(second) == [("four", 90.0, "m"), ("five", 10.0, "m")]
    assert words(third) == [("a", 5.0, "m")]
    assert account(reading) == {"invalid_rating": 1, "missing_field": 2, "empty_response": 1, "empty_question": 1}


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
    assert words(question) == [("a", 4.0, "unknown"), ("b", 0.0, "unknown")]
    assert account(reading) == {}


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
    assert account(reading) == {"missing_field": 1}


def test_blend(tmp_path):
    idks = {"idk": 0, "no-answer": 0, "not-applicable": 0}
    votes = [{"answers": ["b"], "en_answers": ["B"], "count": 1}, {"answers": ["a", "c"], "en_answers": [], "count": 2}]
    entry = {"question": "问", "en_question": "ask", "annotations": votes, "idks": idks}
    entries = {
        "1": entry,
        "2": entry | {"idks": idks | {"no-answer": 3}},
        "3": entry | {"idks": idks | {"idk": 5}},
        "4": entry | {"annotations": []},
        "5": {"question": "问"},
        "6": entry | {"annotations": [{"answers": ["a"], "count": "many"}]},
    }
    (tmp_path / "China_data.json").write_text(json.dumps(entries), encoding="utf-8")
    (tmp_path / "China_questions.csv").write_text("ID,Question\n1,q\n")
    reading = readers.read("blend", str(tmp_path))
    assert account(reading) == {"unanswerable": 2, "empty_response": 1, "missing_field": 1, "invalid_rating": 1}
    assert [entry["row"] for entry in reading.report.rejected] == [1, 2, 3, 4, 5]
    (one,) = reading.questions
    assert words(one) == [("a", None, "reference")]
    assert (one.culture, one.language, one.reference, one.translated) == ("chinese", "zh", "a", "ask")
    hub = readers.read("blend", write(tmp_path, [entry | {"ID": "1", "country": "South Korea"}])).questions
    assert (hub[0].culture, hub[0].language) == ("south_korea", "ko")
    (tmp_path / "China_data.json").unlink()
    with pytest.raises(UserError, match=r"no file whose name matches .*; there are China_questions\.csv"):
        readers.read("blend", str(tmp_path))


def test_real_blend(shared):
    reading = readers.read("blend", str(shared / "data" / "blend"))
    assert account(reading) == {"unanswerable": 15, "empty_response": 1}
    assert len(reading.report.rejected) == 16
    assert reading.report.to_json()["by"]["culture"] == {"algeria": 50, "chinese": 54}


def test_the_table_names_every_dataset_once_and_only_readers_that_exist():
    names = [data.name for data in datasets()]
    assert len(names) == len(set(names))
    for data in datasets():
        assert data.status in ("preferences", "sft", "evaluation", "reader", "out")
        if data.status in ("preferences", "sft", "reader"):
            assert data.reader in readers.READERS
        if data.status == "evaluation":
            assert all(name in tasks.TASKS for name in data.reader.split(", "))
        if data.status in ("out", "reader"):
            assert data.note
    text = list_text()
    assert all(data.name in text and data.licence in text for data in datasets())
    assert all(name in text for name in readers.READERS)
    assert "CAMeL [evaluation; fields unverified] task cloze" in text


def test_a_map_for_assertions(tmp_path):
    row = {"subject": "China", "facet": "food", "assertion": "Tea is offered to guests."}
    columns = {"question": "subject", "reference": "assertion"}
    reading = readers.read("care_eval", write(tmp_path, [row]), columns=columns)
    assert [(q.prompt[0]["content"], q.reference) for q in reading.questions] == [("China", row["assertion"])]


@pytest.mark.parametrize(
    ("file", "culture", "language"),
    [("US_data.json", "us", "en"), ("US_data_v1.json", "us", "en"), ("South_Korea_data.json", "south_korea", "ko")],
)
def test_the_reader_and_the_task_agree_on_the_country_of_a_blend_file(tmp_path, file, culture, language):
    votes = [{"answers": ["pie"], "en_answers": ["pie"], "count": 2}]
    entry = {"question": "q?", "en_question": "q?", "annotations": votes, "idks": {}}
    (tmp_path / file).write_text(json.dumps({"1": entry}), encoding="utf-8")
    for path in (tmp_path, tmp_path / file):
        (question,) = readers.read("blend", str(path)).questions
        assert (question.culture, question.language) == (culture, language)
        (item,) = blend.read_short(str(path), Options()).items
        assert item.groups["culture"] == culture
        assert item.groups["language"] == country_language(item.groups["country"]).name
