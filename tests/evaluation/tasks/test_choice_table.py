"""Tables of multiple-choice questions, with any column names."""

import pytest

from care_jax.errors import UserError
from tests.evaluation.tasks.helpers import answer, read, result, write, write_lines


@pytest.mark.parametrize("right", [1, "1", "B", "b", "Option B", "bread"])
def test_the_right_option_may_be_an_index_a_letter_or_its_text(tmp_path, right):
    path = write_lines(tmp_path / "a.jsonl", [{"question": "q", "options": ["rice", "bread"], "answer": right}])
    assert read("mcq", path).items[0].right == (1,)


def test_any_table_by_a_column_map(tmp_path):
    path = write(tmp_path / "a.csv", "frage,w1,w2,loesung\nq,ja,nein,nein\n")
    columns = {"question": "frage", "option_a": "w1", "option_b": "w2", "answer": "loesung"}
    assert result("mcq", path, [answer("0", "B")], columns=columns)["score"] == 1.0
    with pytest.raises(UserError, match=r"row 0.*no question, answer; its columns are frage, w1"):
        read("mcq", path)
