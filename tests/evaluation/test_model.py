"""The names and folders of models."""

from care_jax.data.rows.files import SAMPLE
from care_jax.evaluation import model


def test_names_of_systems(tmp_path):
    export = tmp_path / "run" / "export"
    export.mkdir(parents=True)
    assert model.system_name("owner/name") == "owner/name"
    assert model.system_name(str(tmp_path / "run")) == "run"
    assert model.system_name(str(export)) == "run"


def test_a_run_stands_for_its_export(tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    assert model.model_folder(str(tmp_path)) == export
    assert model.model_folder("sample") == SAMPLE / "model"
