"""Model folders for tests: changed copies of the golden ones, and comparison of their tensors."""

import json
import shutil

from tests.models.tiny_models import GOLDEN


def copy_of(name, tmp_path, **changes):
    """Copies a golden folder and changes its config.json; a key set to ... is removed."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not ...}))
    return folder


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape, name
        assert ours[name].tobytes() == tensor.tobytes(), name
