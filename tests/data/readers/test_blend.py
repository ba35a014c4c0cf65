"""BLEnD's annotations as questions, and as the task reads them."""

import json

import pytest

from care_jax.data import readers
from care_jax.data.readers.blend import country_language
from care_jax.errors import UserError
from care_jax.evaluation.items import Options
from care_jax.evaluation.tasks import blend
from tests.data.care_rows import counts, texts, write


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
    assert counts(reading) == {"unanswerable": 2, "empty_response": 1, "missing_field": 1, "invalid_rating": 1}
    assert [entry["row"] for entry in reading.report.rejected] == [1, 2, 3, 4, 5]
    (one,) = reading.questions
    assert texts(one) == [("a", None, "reference")]
    assert (one.culture, one.language, one.reference, one.translated) == ("chinese", "zh", "a", "ask")
    hub = readers.read("blend", write(tmp_path, [entry | {"ID": "1", "country": "South Korea"}])).questions
    assert (hub[0].culture, hub[0].language) == ("south_korea", "ko")
    (tmp_path / "China_data.json").unlink()
    with pytest.raises(UserError, match=r"no file whose name matches .*; there are China_questions\.csv"):
        readers.read("blend", str(tmp_path))


def test_real_blend(shared):
    reading = readers.read("blend", str(shared / "data" / "blend"))
    assert counts(reading) == {"unanswerable": 15, "empty_response": 1}
    assert len(reading.report.rejected) == 16
    assert reading.report.to_json()["by"]["culture"] == {"algeria": 50, "chinese": 54}


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
