"""The catalogue of datasets."""

from care_jax.data import readers
from care_jax.data.curation.catalogue import datasets, list_text
from care_jax.evaluation import tasks


def test_the_table_names_every_dataset_once_and_only_readers_that_exist():
    names = [data.name for data in datasets()]
    assert len(names) == len(set(names))
    for data in datasets():
        assert data.status in ("preferences", "sft", "evaluation", "reader", "out")
        if data.status in ("preferences", "sft", "reader"):
            assert data.reader in readers.READERS
        if data.status == "evaluation":
            assert all(name in tasks.TASKS for name in data.reader.split(", "))
        if data.status in ("out", "reader"):
            assert data.note
    text = list_text()
    assert all(data.name in text and data.licence in text for data in datasets())
    assert all(name in text for name in readers.READERS)
    assert "CAMeL [evaluation; fields unverified] task cloze" in text
