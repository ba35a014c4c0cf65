"""The report of a reading: its keys, its sums, and its files."""

import json
from typing import get_args, get_type_hints

import pytest

from care_jax import textfiles
from care_jax.config.blocks import PairsConfig
from care_jax.data import readers
from care_jax.data.preferences import POLICIES
from care_jax.data.rows import report
from tests.data.care_rows import care_row, write


def test_the_account_of_real_rows(shared):
    account = readers.read("care", str(shared / "data/care_rated.jsonl")).report.to_json()
    assert list(account) == ["rows", "questions", "responses", "dropped", "ratings", "by", "pairs"]
    assert (account["rows"], account["questions"], account["responses"]) == (2700, 450, 2649)
    assert account["rows"] == account["responses"] + sum(account["dropped"].values())
    assert account["by"]["culture"] == {"arab": 150, "chinese": 150, "japanese": 150}
    assert set(account["by"]["category"].values()) == {90}
    assert sum(account["ratings"].values()) == 2649
    assert account["pairs"]["all"] == 6071
    assert account["pairs"]["best_worst"] == 450


def test_files_are_written_whole(tmp_path):
    path = write(tmp_path, [care_row(), care_row(), care_row(response="B", human_rating=99), care_row(response="C")])
    reading = readers.read("care", path)
    reading.report.drop_truncated(0, 1, "prompt of 9000 tokens")
    reading.report.drop_truncated(0, 1, "prompt of 9000 tokens")
    account = report.write_report(tmp_path / "run", [reading.report])
    assert json.loads((tmp_path / "run/data_report.json").read_text()) == account
    assert (account["rows"], account["responses"]) == (4, 1)
    dropped = {reason: n for reason, n in account["dropped"].items() if n}
    assert dropped == {"duplicate": 1, "invalid_rating": 1, "truncated_away": 1}
    lines = [json.loads(line) for line in (tmp_path / "run/rejected_rows.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["duplicate", "invalid_rating", "truncated_away"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["data_report.json", "rejected_rows.jsonl"]


def test_rows_are_numbered_within_their_file(tmp_path):
    """A folder of two files: a duplicate, its original and a truncated response are in the second file."""
    write(tmp_path, [care_row()], "a.jsonl")
    path = write(tmp_path, [care_row(response="B"), care_row(response="A"), care_row(response="B")], "b.jsonl")
    loaded = readers.read("care", str(tmp_path)).report
    assert [response.row_number for response in loaded.questions[0].responses] == [0, 1]
    loaded.drop_truncated(0, 1, "prompt of 9000 tokens")
    first, same_file, truncated = loaded.rejected
    assert (first["file"], first["row"]) == (path, 1)
    assert first["found"] == f"the same response as in row 0 of {tmp_path / 'a.jsonl'}, with the same rating"
    assert (same_file["row"], same_file["found"]) == (2, "the same response as in row 0, with the same rating")
    assert (truncated["file"], truncated["row"]) == (path, 0)


def test_several_sources_add_up(tmp_path):
    a = readers.read("care", write(tmp_path, [care_row(), care_row(response="B", human_rating=3)]))
    b = readers.read("preferences", write(tmp_path, [{"prompt": "p", "chosen": "c", "rejected": "r"}], "p.jsonl"))
    account = report.merge([a.report, b.report])
    assert (account["rows"], account["questions"], account["responses"]) == (3, 2, 3)  # a pair is one row
    assert account["pairs"] == {"all": 2, "best_worst": 2, "adjacent": 2, "random": 2}
    assert account["ratings"] == {"0": 1, "1": 1, "3": 1, "7": 1}


def test_nothing_is_left_behind_by_a_failed_write(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        textfiles.write_whole(tmp_path / "x.json", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_knows_the_same_policies():
    assert get_args(get_type_hints(PairsConfig)["policy"]) == POLICIES
