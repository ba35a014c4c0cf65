"""The readers of preference pairs, labelled responses, token ids and HH-RLHF's dialogues."""

from care_jax.data import readers
from tests.data.care_rows import write


def test_real_hh_rlhf(shared):
    reading = readers.read("hh_rlhf", str(shared / "data/hh_rlhf"))
    assert len(reading.questions) == 399
    assert dict(reading.report.dropped) == {"empty_response": 1}
    first = reading.questions[0]
    assert [m["role"] for m in first.prompt] == ["user", "assistant", "user", "assistant", "user"][: len(first.prompt)]
    assert first.prompt[0]["content"] == "what are some pranks with a pen i can do?"
    text = readers.read("hh_rlhf_text", str(shared / "data/hh_rlhf")).questions[0]
    assert text.prompt.endswith("\n\nAssistant:")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_preference_formats(tmp_path):
    whole = [user("q"), assistant("x")], [user("q"), assistant("y")]
    rows = [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": [user("q")], "chosen": [assistant("x")], "rejected": [assistant("y")]},
        {"chosen": whole[0], "rejected": whole[1]},
        {"prompt": "q", "chosen": whole[0], "rejected": whole[1], "score_chosen": 1},
        {"prompt": [user("q")], "chosen": whole[0], "rejected": whole[1]},
    ]
    questions = readers.read("preferences", write(tmp_path, rows)).questions
    assert (questions[0].prompt, [r.content for r in questions[0].responses]) == ("The sky is", [" blue.", " green."])
    assert (questions[1].prompt, [r.content for r in questions[1].responses]) == ("The sky is", [" blue.", " green."])
    for question in questions[2:]:
        assert question.prompt == (user("q"),)
        assert [r.content for r in question.responses] == [(assistant("x"),), (assistant("y"),)]
    assert [(r.rating, r.field) for r in questions[0].responses] == [(1.0, "chosen"), (0.0, "rejected")]
    assert len({q.key for q in questions[2:]}) == 1  # a prompt that returns is another group with the same key


def test_unpaired_format(tmp_path):
    rows = [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": 0}]
    questions = readers.read("preferences", write(tmp_path, rows)).questions
    assert [q.responses[0].desirable for q in questions] == [True, False]


def test_preference_rows_that_cannot_be_used(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "a"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": [assistant("b")]},
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"chosen": "ax", "rejected": "bx"},
        {"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"},
        {"prompt": "p", "completion": "a", "label": "perhaps"},
        {"prompt": 5, "chosen": "a", "rejected": "b"},
    ]
    reading = readers.read("preferences", write(tmp_path, rows))
    assert reading.questions == []
    assert dict(reading.report.dropped) == {
        "missing_field": 1,
        "empty_question": 4,
        "empty_response": 1,
        "unreadable": 1,
        "conflicting_duplicate": 1,
        "invalid_rating": 1,
    }


def test_tokenized_rows(tmp_path):
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]},
        {"prompt_ids": [1, 2], "completion_ids": [3], "label": True},
        {"prompt_ids": [], "chosen_ids": [3], "rejected_ids": [4]},
        {"prompt_ids": [1], "chosen_ids": ["3"], "rejected_ids": [4]},
    ]
    reading = readers.read("tokenized", write(tmp_path, rows))
    pair, labelled = reading.questions
    assert (pair.prompt, [r.content for r in pair.responses]) == ((1, 2), [(3,), (4, 5)])
    assert (labelled.responses[0].content, labelled.responses[0].desirable) == ((3,), True)
    assert dict(reading.report.dropped) == {"empty_question": 1, "empty_response": 1}


def test_hh_rlhf_transcripts(tmp_path):
    start = "\n\nHuman: hi\n\nHuman: there\n\nAssistant: yes?\n\nHuman: why\n\nAssistant:"
    rows = [
        {"chosen": start + " because", "rejected": start + " dunno"},
        {"chosen": start + " because", "rejected": start.replace("why", "how") + " dunno"},
        {"chosen": "no dialogue", "rejected": "none"},
    ]
    reading = readers.read("hh_rlhf", write(tmp_path, rows))
    (question,) = reading.questions
    assert question.prompt == (user("hi\n\nthere"), assistant("yes?"), user("why"))
    assert [r.content for r in question.responses] == [(assistant("because"),), (assistant("dunno"),)]
    assert dict(reading.report.dropped) == {"prompt_mismatch": 1, "empty_question": 1}
