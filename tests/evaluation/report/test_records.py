"""Records read from the folders of systems."""

import pytest

from care_jax.errors import UserError
from care_jax.evaluation.report import records
from tests.evaluation.report.rated import write_rated


def test_two_folders_of_one_system_are_named_by_the_folders(tmp_path):
    folders = [write_rated(tmp_path / name, "same", 0.0) for name in ("first", "second")]
    assert {record.system for record in records.load_records(folders)} == {"first", "second"}


def test_a_folder_without_judged_or_scored_answers_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no judged or scored answers"):
        records.load_records([str(tmp_path)])
