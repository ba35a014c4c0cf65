"""Rows of datasets that another library opens."""

import pytest

from care_jax.data import readers
from care_jax.errors import UserError
from tests.data.care_rows import care_row


def test_a_saved_dataset(tmp_path):
    import datasets

    data = datasets.DatasetDict({"train": datasets.Dataset.from_list([care_row()])})
    data.save_to_disk(str(tmp_path / "saved"))
    assert len(readers.read("care", str(tmp_path / "saved"), split="train").questions) == 1
    with pytest.raises(UserError, match="no split 'tset'"):
        readers.read("care", str(tmp_path / "saved"), split="tset")


def test_a_hub_dataset(tmp_path, monkeypatch):
    import datasets

    def load_dataset(path, name, *, split, revision):
        if path != "geyang627/care":
            raise FileNotFoundError("not on the hub")
        assert (name, split, revision) == ("arabic", None, "abc")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list([care_row()])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    reading = readers.read("care", "geyang627/care", name="arabic", revision="abc")
    assert len(reading.questions) == 1
    assert reading.files[0][0] == "geyang627/care@abc"
    with pytest.raises(UserError, match="not on the hub"):
        readers.read("care", "nobody/nothing")
