"""The readers of rated responses: both schemas of CARE, what is dropped and why, grouping."""

import json

import pytest

from care_jax.data import readers
from care_jax.errors import UserError
from tests.data.care_rows import care_row, counts, write


def test_real_care_rows(shared):
    reading = readers.read("care", str(shared / "data/care_rated.jsonl"))
    assert len(reading.questions) == 450
    assert sum(len(q.responses) for q in reading.questions) == 2649
    assert counts(reading) == {"duplicate": 15, "conflicting_duplicate": 36}


def test_real_care_evaluation_items(shared):
    reading = readers.read("care_eval", str(shared / "data/care_eval"))
    cells = {}
    for question in reading.questions:
        cells[question.culture, question.category] = cells.get((question.culture, question.category), 0) + 1
    assert len(reading.questions) == 450
    assert len(cells) == 15
    assert set(cells.values()) == {30}
    assert len(reading.files) == 3


def test_both_care_schemas(tmp_path):
    old = {
        "Question": "q",
        "response": "r",
        "rating": "7",
        "source": "LLM",
        "culture_type": "Literacy",
        "Associated Culture": "Foreign (Arab)",
    }
    reading = readers.read("care", write(tmp_path, [care_row(), old]))
    new_question, old_question = reading.questions
    assert counts(reading) == {}
    assert new_question.prompt == ({"role": "user", "content": "为什么？"},)
    assert new_question.responses[0].content == ({"role": "assistant", "content": "A"},)
    assert (new_question.culture, new_question.relation, new_question.category) == ("chinese", "native", "norms")
    assert (new_question.language, new_question.reference, new_question.translated) == ("zh", "因为。", None)
    assert (old_question.culture, old_question.relation, old_question.category) == ("arab", "foreign", "literacy")
    assert old_question.responses[0].rating == 7.0
    assert old_question.reference is None


def test_every_reason_is_counted_and_listed(tmp_path):
    path = tmp_path / "care.jsonl"
    rows = [
        care_row(),
        care_row(),  # duplicate, whatever the source
        care_row(source="human", human_rating=3),  # conflicting
        care_row(question=...),
        care_row(question=None),
        care_row(question=" \n"),
        care_row(response=""),
        care_row(response=["x"]),
        care_row(human_rating="N/A"),
        care_row(human_rating=11),
        care_row(human_rating=None),
        care_row(cul_type="Weather"),
        care_row(associated_culture=None),
        care_row(associated_culture=...),
    ]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    lines += [b'{"question": ', b"[1, 2]", b"\xff\xfe{}", b"null", b"[" * 100_000]
    path.write_bytes(b"\n".join(lines) + b"\n")
    reading = readers.read("care", str(path))
    assert counts(reading) == {
        "duplicate": 1,
        "conflicting_duplicate": 1,
        "missing_field": 2,
        "empty_question": 2,
        "empty_response": 2,
        "invalid_rating": 3,
        "unknown_category": 1,
        "unknown_culture": 1,
        "unreadable": 5,
    }
    (question,) = reading.questions
    (response,) = question.responses
    assert response.rating == pytest.approx((7 + 7 + 3) / 3)
    assert (response.row_number, response.source) == (0, "gpt-4o")
    first = reading.report.rejected[0]
    assert (first["file"], first["row"], first["line"], first["reason"]) == (str(path), 1, 2, "duplicate")
    assert {"file", "row", "field", "reason", "found"} <= set(first)


def test_a_column_that_no_row_has_is_not_missed(tmp_path):
    rows = [care_row(associated_culture=..., cul_type=..., source=..., answer=...)]
    reading = readers.read("care", write(tmp_path, rows))
    assert counts(reading) == {}
    assert reading.questions[0].culture is None


def test_the_reader_care_reads_evaluation_items_too(tmp_path):
    items = [care_row(response=..., human_rating=..., source=...), care_row(response=..., human_rating=..., answer="")]
    reading = readers.read("care", write(tmp_path, items))
    (question,) = reading.questions
    assert (question.reference, question.responses[0].rating, question.responses[0].field) == ("因为。", None, "answer")
    assert counts(reading) == {"empty_response": 1}
    assert counts(readers.read("care", write(tmp_path, [*items, care_row()]))) == {"missing_field": 2}


def test_strict_names_the_first_bad_row(tmp_path):
    path = write(tmp_path, [care_row(), care_row(response="B", human_rating="x")])
    with pytest.raises(UserError, match=r"care.jsonl, row 1 \(line 2\), rating: invalid rating: text: x"):
        readers.read("care", path, strict=True)
    assert len(readers.read("care", write(tmp_path, [care_row(), care_row()]), strict=True).questions) == 1


def test_text_reaches_the_question_byte_for_byte(tmp_path):
    odd = " \u200b心\n\n🤪\u2028A\u0301 "
    reading = readers.read("care", write(tmp_path, [care_row(question=odd, response=odd)]))
    assert reading.questions[0].prompt[0]["content"] == odd
    assert reading.questions[0].responses[0].content[0]["content"] == odd


def test_groups_by_normalised_question_and_culture(tmp_path):
    rows = [care_row(question="abc?"), care_row(question="ＡＢＣ？ ", response="B")]
    rows.append(care_row(question="abc?", associated_culture="Native (Arab)"))
    reading = readers.read("care", write(tmp_path, rows))
    assert [len(q.responses) for q in reading.questions] == [2, 1]


def test_rows_of_one_question_read_alike_in_any_order(tmp_path):
    rows = [
        care_row(question="abc? ", source="b", human_rating=3, answer="y", cul_type="Opinion"),
        care_row(question="ABC?", source="a", human_rating=8, answer="x"),
        care_row(question="abc?", source="c", human_rating=9),
    ]
    first, other = (readers.read("care", write(tmp_path, some)).questions[0] for some in (rows, rows[::-1]))
    for one in (first, other):
        assert (one.prompt[0]["content"], one.reference, one.category) == ("ABC?", "x", "norms")
        assert [(r.rating, r.source) for r in one.responses] == [(20 / 3, "a")]


def test_a_scored_response_comes_after_its_own_rows_words(tmp_path):
    path = write(tmp_path, [care_row(question=q) for q in ("a?", "a? ", "a?")])
    asked = readers.read("care", path, every_response=True).questions
    assert [(q.prompt[0]["content"], [r.row_number for r in q.responses]) for q in asked] == [
        ("a?", [0, 2]),
        ("a? ", [1]),
    ]
    assert len({q.key for q in asked}) == 1
