"""The tables, against values computed by hand."""

import json

import numpy as np
import pytest

from care_jax.study import results, stages, tables
from tests.study.example import GAIN


def test_tables_by_hand(finished):
    folder = stages.run(finished)  # every run is finished: nothing is trained
    rows = json.loads((folder / "report.json").read_text())

    def row(kind, arm, fraction, culture="all", measure=results.LOGPS):
        return next(
            r for r in rows
            if (r["measure"], r["kind"], r["arm"], r["culture"]) == (measure, kind, arm, culture)
            and r["point"] == {"data.fraction": str(fraction)}
        )  # fmt: skip

    for (arm, fraction), gain in GAIN.items():
        mean = row("mean", arm, fraction)
        assert mean["value"] == pytest.approx(0.455 + gain + 0.01)  # seed 1 adds 0.02
        assert (mean["seeds"], mean["questions"]) == (2, 12)
        assert mean["low"] < mean["value"] < mean["high"]
        assert row("gain", arm, fraction)["value"] == pytest.approx(gain + 0.01)
        share = row("share of the full gain", arm, fraction)
        full = GAIN[arm, 1.0]
        assert share["value"] == pytest.approx((gain + 0.01) / (full + 0.01))
        assert share["relative"] == pytest.approx((gain + 0.01) / 0.455)
    assert row("share of the full gain", "dpo", 1.0)["low"] == pytest.approx(1.0)
    assert row("from dpo", "simpo", 1.0)["value"] == pytest.approx(0.1)
    arab = row("mean", "dpo", 1.0, "arab", results.REWARDS)
    assert arab["value"] == pytest.approx(np.mean([0.4 + 0.01 * n for n in range(0, 12, 2)]) + 0.2 * 0.8 + 0.01)
    names = {path.name for path in folder.glob("*.png")}
    assert {"curves_preference_accuracy.png", "scatter_preference_accuracy_by_logps.png"} <= names
    assert "| dpo | fraction=0.5 |" in (folder / "report.md").read_text()


def test_native_minus_english():
    def observation(measure, value, question):
        return results.Observation("m", "m", {}, None, "start", measure, "arab", "norms", question, value)

    observations = [observation("care_eval", 5.0 + n, f"arab-{n}") for n in range(4)]
    observations += [observation("care_eval (english)", 4.0 + n, f"arab-{n}") for n in range(4)]
    rows = tables.language_gaps(observations)
    assert [(row["category"], row["value"]) for row in rows] == [("all", 1.0), ("norms", 1.0)]
    assert tables._gap_text(rows)[0] == "## Native minus English"
