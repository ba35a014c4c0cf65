"""Files that are written aside and renamed, JSON lines, and the message of a file that cannot be written."""

import json

import pytest

from care_jax import textfiles
from care_jax.errors import UserError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    textfiles.write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        textfiles.write_whole(path, "\ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_lines_come_back_up_to_the_first_incomplete_one(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    rows = [{"text": "two\nlines \u2028 茶"}, {"text": "half a pair: \ud800"}]
    assert textfiles.read_lines(path) == []
    textfiles.write_lines(path, rows)
    assert textfiles.read_lines(path) == rows
    path.write_text(path.read_text() + '{"text": "cut')
    assert textfiles.read_lines(path) == rows


def test_an_incomplete_last_line_is_cut_off_once_all_lines_are_read(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    assert list(textfiles.complete_lines(path)) == []
    path.write_bytes(b"1\n2\n3")
    assert next(textfiles.complete_lines(path)) == b"1\n"
    assert path.read_bytes() == b"1\n2\n3"
    assert list(textfiles.complete_lines(path)) == [b"1\n", b"2\n"]
    assert path.read_bytes() == b"1\n2\n"


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": 1}\n\n[2]\n{"cut', encoding="utf-8")
    lines = textfiles.parse_lines(path)
    assert next(lines) == (f"{path} (line 1)", {"a": 1})
    assert next(lines) == (f"{path} (line 3)", [2])
    with pytest.raises(UserError, match=r"a.jsonl \(line 4\): not JSON: "):
        next(lines)


def test_a_json_document_ends_with_a_newline(tmp_path):
    textfiles.write_json(tmp_path / "a.json", {"text": "茶"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"text": "茶"}
    assert "茶" in text
    assert text.endswith("}\n")


def test_a_file_that_cannot_be_written_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.jsonl"
    with pytest.raises(UserError, match=rf"--out: cannot write {path}: "), textfiles.writing("--out", path):
        textfiles.write_lines(path, [])


def test_cells_of_a_table_stay_in_their_column():
    assert textfiles.markdown_table(["a", "b"], [["x|y", "1\n2"]]) == ["| a | b |", "|---|---|", "| x\\|y | 1 2 |", ""]
