"""The commands of `care-jax data`."""

import csv
import json

import pytest

from care_jax import cli
from tests.data.care_rows import care_row, write

QUESTIONS = [
    {"question": f"{word}?", "answer": "음식", "cul_type": category, "associated_culture": "Native (Korean)"}
    for category in ("Social norms", "Opinion")
    for word in ("김치는", "설날은", f"{category} 무엇", f"{category} 누구")
]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path, [q | {"question": f"{n} {q['question']}"} for n, q in enumerate(QUESTIONS)], "q.jsonl")


def test_list(capsys):
    assert cli.main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    for part in ("care_eval", "hh_rlhf", "OpenAssistant [preferences] reader oasst", "licence: Apache-2.0", "fields: "):
        assert part in shown


def test_inspect_as_json(capsys):
    assert cli.main(["data", "inspect", "sample", "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert list(account)[:7] == ["rows", "questions", "responses", "dropped", "ratings", "by", "pairs"]
    assert account["rows"] == account["responses"] + sum(account["dropped"].values())
    assert {"ties", "lengths", "rating_length", "scripts", "ratings_by_source"} <= set(account)
    assert len(account["rejected"]) == sum(account["dropped"].values())
    assert {"question", "responses"} == set(account["examples"][0])


def test_inspect_for_people(tmp_path, capsys):
    path = write(tmp_path, [care_row(human_rating=11), care_row(human_rating=3)])
    picture = tmp_path / "a.png"
    assert cli.main(["data", "inspect", path, "--plot", str(picture)]) == 0
    shown = capsys.readouterr().out
    for part in ("rows       2", "questions  1", "responses  1", "invalid_rating 1", f"{path}, row 0, rating: "):
        assert part in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["data", "inspect", path, "--plot", "a.txt"]) == 2
    assert "'a.txt'" in capsys.readouterr().err


def test_inspect_anyones_own_columns(tmp_path, capsys):
    path = write(tmp_path, [{"frage": "q", "antwort": "a", "note": 3}, {"frage": "q", "antwort": "b", "note": 5}])
    words = ["data", "inspect", path, "--json", "--reader", "rated", "--columns", "question=frage", "response=antwort"]
    assert cli.main([*words, "rating=note"]) == 0
    assert json.loads(capsys.readouterr().out)["ratings"] == {"3": 1, "5": 1}
    assert cli.main([*words, "rating"]) == 2
    assert "expected FIELD=COLUMN, found 'rating'" in capsys.readouterr().err


def test_check(tmp_path, capsys):
    train = write(tmp_path, [care_row(), care_row(question="كيف حالك اليوم؟")])
    held = [{"question": "为 什么", "answer": "x", "culture_type": "Opinion", "associated_culture": "Native (Chinese)"}]
    against = write(tmp_path, [held[0] | {"question": "为什么？"}], "eval.jsonl")
    words = ["data", "check", train, "--against", against, "--against-reader", "care_eval"]
    assert cli.main(words) == 3
    assert "1 the same, 0 near" in capsys.readouterr().out
    assert cli.main([*words, "--json"]) == 3
    leakage = json.loads(capsys.readouterr().out)
    assert (leakage["same"], leakage["near"], leakage["overlaps"][0]["kind"]) == (1, 0, "same")
    clean = write(tmp_path, [held[0] | {"question": "谁发明了火药？"}], "clean.jsonl")
    assert cli.main(["data", "check", train, "--against", clean]) == 0
    assert cli.main(["data", "check", train]) == 2
    assert "--against" in capsys.readouterr().err


def test_check_of_columns_and_splits(tmp_path, capsys):
    (tmp_path / "d").mkdir()
    write(tmp_path / "d", [{"frage": "为什么？", "antwort": "a", "note": 3}], "train-0.jsonl")
    write(tmp_path / "d", [{"nonsense": 1}], "other.jsonl")
    held = write(tmp_path, [{"ask": "为什么？", "gold": "x"}], "eval.jsonl")
    words = ["data", "check", str(tmp_path / "d"), "--reader", "rated", "--split", "train", "--against", held]
    own = ["--columns", "question=frage", "response=antwort", "rating=note"]
    assert cli.main([*words, *own, "--against-reader", "care_eval", "--against-columns", "question=ask"]) == 3
    assert "1 the same" in capsys.readouterr().out
    assert cli.main([*words, *own, "--against-columns", "ask"]) == 2
    assert "--against-columns: expected FIELD=COLUMN, found 'ask'" in capsys.readouterr().err


def test_check_real_rows(shared, capsys):
    data = shared / "data"
    assert cli.main(["data", "check", str(data / "care_rated.jsonl"), "--against", str(data / "care_eval")]) == 3
    assert "450 the same" in capsys.readouterr().out


def test_split(tmp_path, questions, capsys):
    out = tmp_path / "parts"
    assert cli.main(["data", "split", questions, "--per-category", "2", "--out", str(out)]) == 0
    assert f"{out / 'eval.jsonl'}: 4 rows" in capsys.readouterr().out
    train, held = (lines(out / f"{name}.jsonl") for name in ("train", "eval"))
    assert [row["cul_type"] for row in held].count("Opinion") == 2
    assert sorted(row["question"] for row in train + held) == sorted(q["question"] for q in lines_of(questions))
    assert cli.main(["data", "split", questions, "--per-category", "4", "--out", str(out)]) == 2
    assert "4 cannot be held out" in capsys.readouterr().err
    again = ["data", "split", str(out / "train.jsonl"), "--per-category", "1", "--out", str(out)]
    assert cli.main(again) == 2
    assert "is the file to split" in capsys.readouterr().err
    assert cli.main(["data", "split", questions, "--per-category", "0"]) == 2
    assert "--per-category: found 0, expected at least 1" in capsys.readouterr().err


def lines_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_sheets_out_and_in(tmp_path, questions, capsys):
    asked = [row["question"] for row in lines_of(questions)]
    answers = [
        write(tmp_path, [{"question": q, "response": f"{name} {q}", "system": name} for q in asked], f"{name}.jsonl")
        for name in ("a", "b")
    ]
    out = tmp_path / "sheets"
    words = ["data", "sheet", questions, "--responses", *answers, "--raters", "2", "--out", str(out)]
    assert cli.main(words) == 0
    assert "sheet-2.csv: 16 responses to rate" in capsys.readouterr().out
    assert cli.main(words) == 2  # a filled sheet is never overwritten
    assert "a sheet already" in capsys.readouterr().err
    for number in (1, 2):
        path = out / f"sheet-{number}.csv"
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["rating"] = "8" if row["response"].startswith("a") else str(2 + number)
        with open(path, "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, fieldnames=list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    filled = [str(out / f"sheet-{number}.csv") for number in (1, 2)]
    rated = tmp_path / "rated.jsonl"
    back = ["data", "import-annotations", *filled, "--key", str(out / "key.jsonl"), "--out", str(rated)]
    assert cli.main(back) == 0
    shown = capsys.readouterr().out
    assert "16 rated rows; 0 items unrated" in shown
    assert "over 16 items with two raters or more" in shown
    assert "2 raters, mean 3.5, range 1: b " in shown
    assert cli.main([*back, "--json"]) == 0
    assert 0.5 < json.loads(capsys.readouterr().out)["alpha"] < 1
    assert cli.main(["data", "inspect", str(rated), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert account["ratings"] == {"3.5": 8, "8": 8}
    assert account["by"]["culture"] == {"korean": 8}


def test_tfds(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    path = write(tmp_path, [care_row(), care_row(question="لماذا", associated_culture="Foreign (Arab)")])
    out = str(tmp_path / "tfds")
    assert cli.main(["data", "tfds", path, "--out", out, "--configs", "all", "arab"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"care/all in {out}: 2 questions",
        f"care/arab in {out}: 1 questions",
    ]
    assert cli.main(["data", "inspect", out, "--reader", "tfds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 2
    assert cli.main(["data", "tfds", path, "--out", out, "--configs", "korean"]) == 2
    assert "no config 'korean'" in capsys.readouterr().err
