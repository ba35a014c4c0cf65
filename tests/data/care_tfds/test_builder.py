"""The TFDS dataset: built from rows without TensorFlow, read back the same."""

import subprocess
import sys

import pytest

from care_jax.data import care_tfds, readers
from care_jax.errors import UserError
from tests.data.care_rows import care_row, write


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    rows = [
        care_row(response=" \u200b一\n", human_rating=7),
        care_row(response=" \u200b一\n", human_rating=4),
        care_row(response="二", human_rating=2, source="human"),
        care_row(question="لماذا", response="نعم", associated_culture="Foreign (Arab)", answer=...),
    ]
    path = write(folder, rows)
    return path, folder / "data", care_tfds.prepare(path, folder / "data")


def test_configs_and_order(built):
    _, folder, made = built
    assert made == {"all": 2, "arab": 1, "chinese": 1}
    assert care_tfds.prepare("sample", folder, ("all",)) == {"all": 2}  # a config that exists is kept
    with pytest.raises(UserError, match="no config 'korean'"):
        care_tfds.prepare("sample", folder, ("korean",))


def test_read_back_the_same(built):
    path, folder, _ = built
    rows = readers.read("care", path).questions
    for name, expected in ((None, rows), ("arab", rows[1:])):
        found = readers.read("tfds", str(folder), name=name)
        assert [
            (q.key, q.prompt, q.responses, q.culture, q.relation, q.category, q.reference) for q in found.questions
        ] == [(q.key, q.prompt, q.responses, q.culture, q.relation, q.category, q.reference) for q in expected]
        assert found.report.rows == sum(len(q.responses) for q in expected)
    with pytest.raises(UserError, match="no TFDS config 'korean'"):
        readers.read("tfds", str(folder), name="korean")
    with pytest.raises(UserError, match="split 'dev'"):
        readers.read("tfds", str(folder), split="dev")


def test_evaluation_items_stay_unrated(tmp_path):
    path = write(tmp_path, [care_row(response=..., human_rating=...)])
    assert care_tfds.prepare(path, tmp_path / "data", ("all",)) == {"all": 1}
    found = readers.read("tfds", str(tmp_path / "data"))
    assert [(r.rating, r.source) for r in found.questions[0].responses] == [(None, "reference")]
    assert found.report.to_json()["ratings"] == {}


def test_random_access_and_no_tensorflow(built):
    _, folder, _ = built
    source = care_tfds.source(str(folder), "chinese")
    assert len(source) == 1
    assert source[0]["question"].decode() == "为什么？"
    code = "import sys; from care_jax.data import care_tfds; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
