"""Annotation sheets, written and imported, and evaluation splits."""

import csv
import json

import pytest

from care_jax.data import readers
from care_jax.data.curation.sheets import import_sheets, split, write_sheets
from care_jax.errors import UserError
from tests.data.care_rows import write

QUESTIONS = [
    {"question": "김치는?", "answer": "음식", "cul_type": "Cultural entities", "associated_culture": "Native (Korean)"},
    {"question": "설날은?", "answer": "명절", "cul_type": "Social norms", "associated_culture": "Native (Korean)"},
]
A = [
    {"question": "김치는?", "response": "=1+1", "system": "a"},
    {"question": "설날은?", "response": "모른다", "system": "a"},
]
B = [
    {"prompt": [{"role": "user", "content": "김치는?"}], "response": "=1+1", "system": "b"},
    {"question": "설날은?", "response": "명절이다.\n떡국!", "system": "b"},
    {"question": "설날은?", "response": "", "system": "b"},
    {"question": "other", "response": "x", "system": "b"},
]


@pytest.fixture
def sheets(tmp_path):
    paths = [write(tmp_path, rows, name) for rows, name in ((QUESTIONS, "q.jsonl"), (A, "a.jsonl"), (B, "b.jsonl"))]
    assert write_sheets(paths[0], paths[1:], str(tmp_path / "sheets"), raters=3) == 3
    return tmp_path / "sheets"


def fill(path, rate, delimiter=","):
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["rating"] = rate(row)
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return str(path)


def test_sheets_are_blind_shuffled_and_free_of_duplicates_and_formulas(sheets):
    texts = [(sheets / f"sheet-{n}.csv").read_text(encoding="utf-8") for n in (1, 2, 3)]
    assert all(text.startswith("\ufeffitem,question,response,rating,comment") for text in texts)
    assert "system" not in texts[0]
    assert texts[0].count("'=1+1") == 1
    assert len(set(texts)) > 1  # each rater has their own order
    key = [json.loads(line) for line in (sheets / "key.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(item["systems"] for item in key) == [["a"], ["a", "b"], ["b"]]


def test_filled_sheets_come_back_as_care_rows(sheets, tmp_path):
    good = {"'=1+1": "9", "모른다": " ３ ", "명절이다.\n떡국!": "10"}
    first = fill(sheets / "sheet-1.csv", lambda row: good[row["response"]])
    second = fill(sheets / "sheet-2.csv", lambda row: "8" if row["response"] == "'=1+1" else "", delimiter=";")
    rows, agreement = import_sheets([first, second], str(sheets / "key.jsonl"))
    reading = readers.read("care", write(tmp_path, rows, "rated.jsonl"))
    assert reading.report.rows == 3
    kimchi, newyear = sorted(reading.questions, key=lambda q: len(q.responses))
    assert kimchi.responses[0].content[0]["content"] == "=1+1"
    assert (kimchi.responses[0].rating, kimchi.responses[0].source) == (8.5, "a+b")
    assert {r.rating for r in newyear.responses} == {3.0, 10.0}
    assert (kimchi.culture, kimchi.category, kimchi.reference) == ("korean", "entities", "음식")
    assert agreement.unrated == 0
    assert sorted(agreement.items.values()) == [(1, 3.0, 0.0), (1, 10.0, 0.0), (2, 8.5, 1.0)]


def test_agreement(sheets):
    pytest.importorskip("krippendorff")
    values = {"'=1+1": 1, "모른다": 5, "명절이다.\n떡국!": 9}
    same = [fill(sheets / f"sheet-{n}.csv", lambda row: values[row["response"]]) for n in (1, 2)]
    assert import_sheets(same, str(sheets / "key.jsonl"))[1].alpha == pytest.approx(1.0)
    apart = [*same, fill(sheets / "sheet-3.csv", lambda row: 10 - values[row["response"]])]
    assert import_sheets(apart, str(sheets / "key.jsonl"))[1].alpha < 0.5


def test_mistakes_in_sheets(sheets, tmp_path):
    key = str(sheets / "key.jsonl")
    with pytest.raises(UserError, match=r"sheet-1.csv \(line \d+\), rating: expected 1 to 10, found text: 11"):
        import_sheets([fill(sheets / "sheet-1.csv", lambda row: "11")], key)
    (tmp_path / "x.csv").write_text("item,rating\nnope,3\n")
    with pytest.raises(UserError, match="no item 'nope'"):
        import_sheets([str(tmp_path / "x.csv")], key)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected the columns"):
        import_sheets([str(tmp_path / "x.csv")], key)
    with pytest.raises(UserError, match="no response to a question"):
        write_sheets(write(tmp_path, QUESTIONS), [write(tmp_path, B[-1:], "b.jsonl")], str(tmp_path))


def test_split_holds_out_whole_questions_of_every_category(tmp_path):
    rows = [
        {"question": f"{culture} {category} {n}", "culture": culture, "category": category, "response": r, "extra": [1]}
        for culture in ("korean", "thai")
        for category in ("norms", "opinion")
        for n in range(6)
        for r in "ab"
    ]
    path = write(tmp_path, rows)
    train, held = split(path, 2)
    assert (len(train), len(held)) == (32, 16)
    assert not {row["question"] for row in train} & {row["question"] for row in held}
    assert all(row in rows for row in held)
    backwards = split(write(tmp_path, rows[::-1]), 2)[1]
    assert {row["question"] for row in backwards} == {row["question"] for row in held}
    assert {row["question"] for row in split(path, 2, seed=1)[1]} != {row["question"] for row in held}
    with pytest.raises(UserError, match="6 cannot be held out"):
        split(path, 6)


def test_a_culture_has_one_split_however_it_is_spelt(tmp_path):
    rows = [
        {"question": f"q{n}", "culture": culture, "category": category}
        for n in range(6)
        for culture, category in (("Native (Arab)", "Opinion"), ("ar", "opinions"))
    ]
    train, held = split(write(tmp_path, rows), 2)
    assert (len(train), len(held)) == (8, 4)
    assert not {row["question"] for row in train} & {row["question"] for row in held}
    path = tmp_path / "bad.csv"
    path.write_bytes(b"question,culture\nq,\xff\n")
    with pytest.raises(UserError, match=r"row 0 .*not valid Unicode"):
        split(str(path), 1)
