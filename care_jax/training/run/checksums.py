"""The sha256 of every file of a checkpoint: written before it commits, verified before it is used.

Orbax alone restores a flipped byte as a wrong value. Each process of a run writes the checksums of its own files as
soon as they are written; the first process joins them and adds the rest. `sha256.json` holds
{files: {path: [bytes, sha256]}, sha256}; the last is the checksum of the list itself.
"""

import hashlib
import json

from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from care_jax.textfiles import JsonObject
from care_jax.training.run.bucket import StoragePath, files, sha256, size

LIST = "sha256.json"
# Orbax writes these two when it commits, after our list. Nothing that is restored depends on them.
COMMIT, _METADATA = "commit_success.txt", "_CHECKPOINT_METADATA"


def write_part(folder: StoragePath, process: int) -> None:
    """Writes the checksums of the files that this process alone wrote into a save that has not committed yet."""
    names = [name for name in files(folder) if name.split("/")[1:2] == [f"ocdbt.process_{process}"]]
    part = folder / f"sha256.process_{process}.json"
    part.write_text(json.dumps(_checksums(folder, names)), encoding="utf-8")


def seal(folder: StoragePath) -> None:
    """Joins the parts of all processes and adds the files of no single process. One process calls it, before the
    commit.
    """
    parts = sorted(folder.glob("sha256.process_*.json"))
    listed: JsonObject = {}
    for part in parts:
        listed |= json.loads(part.read_text(encoding="utf-8"))
    unlisted = {COMMIT, _METADATA, *(part.name for part in parts)}
    listed |= _checksums(folder, [n for n in files(folder) if n not in unlisted and _final_name(n) not in listed])
    text = json.dumps({"files": listed, "sha256": _checksum_of(listed)}, indent=1)
    (folder / LIST).write_text(text + "\n", encoding="utf-8")
    for part in parts:
        part.unlink()


def damage(folder: StoragePath, share: tuple[int, int] = (0, 1)) -> str | None:
    """Returns what is wrong with a committed checkpoint, or None. share: (i, n) verifies every n-th file from the i-th.

    Raises PermissionError if a file cannot be read: the user can repair that, and nothing is lost.
    """
    try:
        sealed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        listed = sealed["files"]
        intact = sealed["sha256"] == _checksum_of(listed)
    except FileNotFoundError:
        return f"it misses {LIST}"
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        return f"{LIST} is damaged"
    for name, (expected_bytes, expected_sha256) in sorted(listed.items())[share[0] :: share[1]]:
        try:
            if (actual_bytes := size(folder / name)) is None:
                return f"it misses {name}"
            if actual_bytes != expected_bytes:
                return f"{name} holds {actual_bytes} bytes, expected {expected_bytes}"
            if sha256(folder / name) != expected_sha256:
                return f"{name} differs from its sha256"
        except PermissionError:
            raise
        except OSError as error:  # a failing device
            return f"{name}: {error.strerror}"
    return _commit_damage(folder)


def _commit_damage(folder: StoragePath) -> str | None:
    """Verifies the two files that Orbax writes when it commits: no number depends on them, but other tools read
    them.
    """
    for name in (COMMIT, _METADATA):
        if size(folder / name) is None:
            return f"it misses {name}"
    try:
        commit = (folder / COMMIT).read_text(encoding="utf-8")
        metadata = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
    except ValueError:
        return f"{_METADATA} or {COMMIT} is damaged"
    if not commit.startswith("Checkpoint commit was successful"):
        return f"{COMMIT} is damaged"
    if not isinstance(metadata, dict) or set(metadata.get("item_handlers") or ()) != {"state", "meta"}:
        return f"{_METADATA} is damaged"
    return None


def _final_name(name: str) -> str:
    """Returns the path inside the checkpoint that a file of an uncommitted save will have."""
    return "/".join(part.split(TMP_DIR_SUFFIX)[0] for part in name.split("/"))


def _checksums(folder: StoragePath, names: list[str]) -> JsonObject:
    """Returns {final path inside the checkpoint: [bytes, sha256]}."""
    return {_final_name(name): [size(folder / name), sha256(folder / name)] for name in sorted(names)}


def _checksum_of(listed: JsonObject) -> str:
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
