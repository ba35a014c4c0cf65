"""The statistics of a dataset, as an object, as text and as a picture."""

import pytest

from care_jax.data import readers
from care_jax.data.curation.inspect import inspect, inspect_picture, inspect_text, script, statistics_of
from tests.data.care_rows import care_row, write


@pytest.fixture
def reading(tmp_path):
    rows = [
        care_row(response="长长长长", human_rating=9, source="human"),
        care_row(response="短", human_rating=3),
        care_row(response="中中", human_rating=3),
        care_row(question="لماذا", response="نعم", human_rating=5),
        care_row(question="bad", response=""),
    ]
    return readers.read("care", write(tmp_path, rows))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello 你", "latin"),
        ("你好 a", "cjk"),
        ("日本語は難しい", "kana"),
        ("مرحبا", "arabic"),
        ("안녕", "hangul"),
        ("1!", "none"),
    ],
)
def test_script(text, expected):
    assert script(text) == expected


def test_statistics(reading):
    more = statistics_of(reading.questions)
    assert more["responses_per_question"] == {1: 1, 3: 1}
    assert more["ratings_by_source"] == {"gpt-4o": {"3": 2, "5": 1}, "human": {"9": 1}}
    assert more["ties"] == {"ties": 1, "of_pairs": 3}
    assert more["lengths"] == {"chosen": 4.0, "rejected": 1.5}
    assert more["rating_length"] > 0.8
    assert more["scripts"] == {"cjk": 3, "arabic": 1}
    assert statistics_of([])["rating_length"] is None


def test_text_and_object(reading):
    text = inspect_text(reading.report)
    for part in ("rows       5", "empty_response 1", "chinese 2", "human", "e.g. 为什么", "长长长长  [human]"):
        assert part in text
    assert inspect(reading.report)["questions"] == 2


def test_picture(reading, tmp_path):
    pytest.importorskip("matplotlib")
    inspect_picture(reading.report, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
