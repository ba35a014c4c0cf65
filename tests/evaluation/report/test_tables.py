"""Cells of a report, computed by hand."""

import numpy as np
import pytest

from care_jax.errors import UserError
from care_jax.evaluation.report import records, tables
from tests.evaluation.report.rated import CELLS


def test_cells_averages_and_differences_computed_by_hand(folders):
    report = tables.make_report(records.load_records(folders), "base")
    base = {place: [] for place in CELLS}
    for record in records.load_records(folders[:1]):
        base[record.culture, record.category].append(record.value)
    for place, values in base.items():
        cell = report.cell("care_eval", "cell", "base", *place)
        assert (cell.value, cell.n, cell.failed) == (pytest.approx(np.mean(values)), 6, 0)
        assert cell.low < cell.value < cell.high
    means = [np.mean(values) for values in base.values()]
    assert report.cell("care_eval", "macro", "base", "all", "all").value == pytest.approx(np.mean(means))
    arab = [np.mean(base["arab", name]) for name in ("norms", "literacy")]
    assert report.cell("care_eval", "macro", "base", "arab", "all").value == pytest.approx(np.mean(arab))
    tuned = report.cell("care_eval", "macro", "tuned", "all", "all")
    assert (tuned.n, tuned.failed) == (15, 3)
    difference = report.cell("care_eval", "difference", "tuned", "all", "all")
    assert (difference.value, difference.low, difference.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert (difference.wins, difference.ties, difference.losses, difference.n) == (15, 0, 0, 15)


def test_a_base_that_is_no_system_is_refused(folders):
    with pytest.raises(
        UserError, match=r"--base: found 'tunde' \(did you mean 'tuned'\?\), expected one of base, tuned"
    ):
        tables.make_report(records.load_records(folders), "tunde")
