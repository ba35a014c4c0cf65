"""Rows of local files: kinds of files, folders, and files that cannot be used.

Also tests `data/rows/row.py`.
"""

import csv
import gzip
import json
import os

import pytest

from care_jax.data import readers
from care_jax.data.rows.report import write_report
from care_jax.errors import UserError
from tests.data.care_rows import care_row, counts, write


def test_every_kind_of_file_reads_alike(tmp_path):
    rows = [care_row(response=f'r\n{i}, "x"', human_rating=i + 1) for i in range(5)]
    expected = readers.read("care", write(tmp_path, rows)).questions
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows, indent=4), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"data": rows}), encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "care.jsonl").read_bytes()))
    with open(tmp_path / "d.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "e.parquet")
    for name in ("a.json", "b.json", "c.jsonl.gz", "d.csv", "e.parquet"):
        questions = readers.read("care", str(tmp_path / name)).questions
        assert [(q.prompt, q.responses, q.key) for q in questions] == [
            (q.prompt, q.responses, q.key) for q in expected
        ], name


def test_a_folder_is_read_in_order_and_by_split(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", [care_row(response="a")], "train-0.jsonl")
    write(tmp_path / "data", [care_row(response="b")], "train-1.jsonl")
    write(tmp_path / "data", [care_row(response="c")], "test.jsonl")
    reading = readers.read("care", str(tmp_path), split="train")
    assert [(r.content[0]["content"], r.row_number) for r in reading.questions[0].responses] == [("a", 0), ("b", 1)]
    (tmp_path / ".ipynb_checkpoints").mkdir()  # a copy that an editor made
    write(tmp_path / ".ipynb_checkpoints", [care_row(response="d")], "test.jsonl")
    assert len(readers.read("care", str(tmp_path)).questions[0].responses) == 3
    with pytest.raises(UserError, match="no file for split='dev'"):
        readers.read("care", str(tmp_path), split="dev")


def test_the_packaged_sample():
    assert len(readers.read("care", "sample").questions) >= 72


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"[]", "holds no rows"),
        (b'[{"question": "a"}, {"que', r"row 1 \(line 1\): not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"\x00\x01\x02", "none of 1 rows can be read"),
        (b"hello\nworld", "none of 2 rows can be read; row 0: not JSON"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        readers.read("care", str(tmp_path / "x.json"))


def test_other_broken_files(tmp_path):
    for name, content in (("x.parquet", b"PAR1 no"), ("x.jsonl.gz", b"\x1f\x8b no"), ("x.csv", b'a,b\n"x')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            readers.read("care", str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data files"):
        readers.read("care", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no such file"):
        readers.read("care", str(tmp_path / "absent.jsonl"))
    with pytest.raises(UserError, match="only applies to a folder"):
        readers.read("care", write(tmp_path, [care_row()]), split="train")


def test_csv_rows_that_do_not_fit_the_header(tmp_path):
    (tmp_path / "x.csv").write_text("question,response,rating\nq,r,7\nq,r\nq,r,7,8\n")
    assert counts(readers.read("care", str(tmp_path / "x.csv"))) == {"missing_field": 1, "unreadable": 1}


def test_a_row_of_bad_bytes_in_an_array_is_lost_alone(tmp_path):
    rows = json.dumps([care_row(), care_row(response="XX")], ensure_ascii=False).encode().replace(b"XX", b"\xff\xfe")
    (tmp_path / "x.json").write_bytes(rows)
    assert counts(readers.read("care", str(tmp_path / "x.json"))) == {"unreadable": 1}


def test_a_files_name_that_is_not_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff [1].JSONL")
    path.write_text(json.dumps(care_row()) + "\n{")
    reading = readers.read("care", str(path))
    assert len(reading.questions) == 1
    write_report(tmp_path, [reading.report])
    assert "udcff [1].JSONL" in (tmp_path / "rejected_rows.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl.zip", b"PK\x03\x04"), ("a.jsonl", gzip.compress(b"{}"))], ids=["zip", "gzip"]
)
def test_archives_are_told_from_rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is .*: unpack it"):
        readers.read("care", str(tmp_path / name))
