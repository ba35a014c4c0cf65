"""Tables: rows with their fields; a row that cannot be used is dropped or raises."""

import pytest

from care_jax.data.rows import fields
from care_jax.data.rows.fields import BadField
from care_jax.data.rows.report import Report
from care_jax.data.rows.table import open_table, require_fields
from care_jax.errors import UserError
from tests.data.care_rows import write

ALIASES = {"question": ("question", "ask"), "answer": ("answer",)}


def parse(row, values):
    return row.number, fields.text(values.get("answer"), "answer", "empty_response")


@pytest.fixture
def path(tmp_path):
    path = write(tmp_path, [{"ask": "q", "answer": "a"}, {"ask": "q", "answer": ""}])
    with open(path, "a") as file:
        file.write("not JSON\n")
    return path


def test_a_report_counts_and_lists_what_is_dropped(path):
    report = Report()
    assert list(open_table(path, ALIASES, report=report).parse(parse)) == [(0, "a")]
    assert report.rows == 3
    assert report.dropped == {"empty_response": 1, "unreadable": 1}
    assert [entry["row"] for entry in report.rejected] == [1, 2]


def test_without_a_report_the_first_bad_row_is_refused(path):
    with pytest.raises(UserError, match=r"row 1 \(line 2\), answer: empty response: blank text"):
        list(open_table(path, ALIASES).parse(parse))
    with pytest.raises(UserError, match=r"row 2 \(line 3\): unreadable: not JSON"):
        list(open_table(path, ALIASES))


def test_columns_by_the_users_map(path):
    (_, values), *_ = open_table(path, ALIASES, {"answer": "ask"}, Report())
    assert values == {"question": "q", "answer": "q"}
    with pytest.raises(BadField):
        fields.need(values, "label")


def test_a_missing_field_names_the_columns(path):
    row, values = next(iter(open_table(path, ALIASES, {"answer": None}, Report())))
    with pytest.raises(UserError, match=r"row 0 .*: no answer; its columns are ask, answer \(name them by --columns\)"):
        require_fields(row, values, "question", "answer")
