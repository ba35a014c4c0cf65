"""The table of tasks: their names, and what is refused before anything is answered."""

import pytest

from care_jax.errors import UserError
from care_jax.evaluation import tasks
from care_jax.evaluation.items import Options
from tests.evaluation.tasks.helpers import INCLUDE, OPTIONS, read, write_lines


def test_lm_eval_names_choose_the_language(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", [INCLUDE | {"choices": OPTIONS, "language": name} for name in ("Arabic", "Chinese")]
    )
    task_items = read("include_base_44_arabic", path)
    assert [item.groups["language"] for item in task_items.items] == ["Arabic"]
    with pytest.raises(UserError, match="no 'korean'"):
        read("include_base_44_korean", path)


def test_unknown_tasks_and_tasks_without_their_file(tmp_path):
    with pytest.raises(UserError, match=r"found 'inclade' \(did you mean 'include'\?\)"):
        tasks.find("inclade", Options())
    with pytest.raises(UserError, match="fork needs its file"):
        tasks.read(tasks.TASKS["fork"], None, Options())
