"""The labels of an unpaired loss, and why nothing is left to train on."""

import json

import pytest

from care_jax.config import Config
from care_jax.data import readers
from care_jax.data.preferences import Unit
from care_jax.training.run.data_report import explain_no_units, labels_text, report_labels


def units(desirable, undesirable):
    values = [True] * desirable + [False] * undesirable
    return [Unit(number, (0,), desirable=value) for number, value in enumerate(values)]


@pytest.fixture
def folder(tmp_path):
    """A folder with a report, to which the labels are added."""
    (tmp_path / "data_report.json").write_text('{"rows": 10}')
    return tmp_path


@pytest.mark.parametrize(("weight", "desirable"), [(1.0, 4), (0.5, 2), (2.0, 8)])
def test_labels_are_counted_per_epoch(folder, weight, desirable):
    config = Config.from_any("quickstart", loss={"name": "nll"})
    labels = report_labels(folder, config.losses, [(units(4, 6), weight)])
    assert labels == {"desirable": desirable, "undesirable": 6 * weight}
    assert json.loads((folder / "data_report.json").read_text()) == {"rows": 10, "labels": labels}
    assert f"labels: {desirable} desirable" in labels_text(labels)


def test_ktos_weights_are_compared_with_its_rule(folder):
    config = Config.from_any("quickstart", loss={"name": "kto"})
    labels = report_labels(folder, config.losses, [(units(4, 4), 1.0)])
    assert labels["kto_weight_ratio"] == 1
    assert "as published" in labels_text(labels)
    one_sided = report_labels(folder, config.losses, [(units(4, 0), 1.0)])
    assert one_sided["kto_weight_ratio"] is None
    assert one_sided["advice"] in labels_text(one_sided)


def test_another_view_has_no_labels():
    assert labels_text(None) == ""


def test_a_source_without_units_names_its_rows():
    config = Config.from_any("quickstart")
    reading = readers.read("care", "sample")
    text = explain_no_units([reading], config.data.train)
    assert text.startswith("sample: no unit is left to train on: ")
    assert f"{reading.report.rows} rows were read, {len(reading.questions)} questions kept" in text
