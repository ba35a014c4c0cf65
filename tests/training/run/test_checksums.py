"""The list of checksums: of the files of all processes, and what it finds."""

import json

from care_jax.training.run import checksums


def checkpoint(folder):
    """A checkpoint of two processes, as Orbax leaves it."""
    for process in (0, 1):
        part = folder / "state" / f"ocdbt.process_{process}"
        part.mkdir(parents=True)
        (part / "data").write_bytes(bytes([process]) * 9)
        checksums.write_part(folder, process)
    (folder / "meta").mkdir()
    (folder / "meta" / "metadata").write_text("{}")
    checksums.seal(folder)
    (folder / checksums.COMMIT).write_text("Checkpoint commit was successful to here")
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"item_handlers": {"state": "", "meta": ""}}))
    return folder


def test_all_files_are_listed_and_the_parts_are_gone(tmp_path):
    folder = checkpoint(tmp_path)
    listed = json.loads((folder / checksums.LIST).read_text())["files"]
    assert sorted(listed) == ["meta/metadata", "state/ocdbt.process_0/data", "state/ocdbt.process_1/data"]
    assert listed["meta/metadata"][0] == 2
    assert not list(folder.glob("sha256.process*"))
    assert checksums.damage(folder) is None


def test_each_process_verifies_its_share(tmp_path):
    folder = checkpoint(tmp_path)
    (folder / "state" / "ocdbt.process_1" / "data").write_bytes(b"\0" * 9)
    damage = [checksums.damage(folder, (process, 3)) for process in range(3)]
    assert damage == [None, None, "state/ocdbt.process_1/data differs from its sha256"]


def test_damage_is_named(tmp_path):
    folder = checkpoint(tmp_path)
    (folder / "meta" / "metadata").write_text("{} ")
    assert checksums.damage(folder) == "meta/metadata holds 3 bytes, expected 2"
    (folder / "meta" / "metadata").unlink()
    assert checksums.damage(folder) == "it misses meta/metadata"
    (folder / "meta" / "metadata").write_text("{}")
    (folder / checksums.COMMIT).write_text("half")
    assert checksums.damage(folder) == "commit_success.txt is damaged"
    (folder / checksums.LIST).write_text("{}")
    assert checksums.damage(folder) == "sha256.json is damaged"
