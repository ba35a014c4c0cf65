"""The sha256 of every file of a checkpoint: written before it commits, checked before it is used.

Orbax alone restores a flipped byte as a wrong value. Each process of a run writes the sums of its own files when they
are written; the first joins them and adds the rest. `sha256.json` holds {files: {path: [bytes, sha256]}, sha256}, the
last being that of the list itself.
"""

import hashlib
import json
from typing import Any

from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from care_jax.training.run.bucket import StoragePath, files, sha256, size

SUMS = "sha256.json"
# Orbax writes these two behind us, when it commits; they are read by no restore of ours.
COMMIT, _METADATA = "commit_success.txt", "_CHECKPOINT_METADATA"


def write_part(folder: StoragePath, process: int) -> None:
    """The sums of what this process alone has written into a save that has not committed yet."""
    own = [name for name in files(folder) if name.split("/")[1:2] == [f"ocdbt.process_{process}"]]
    _part(folder, process).write_text(json.dumps(_sums(folder, own)), encoding="utf-8")


def seal(folder: StoragePath) -> None:
    """Joins the parts of all processes and adds the files that are nobody's own. For one process, before the commit."""
    parts = sorted(folder.glob("sha256.process_*.json"))
    found: dict[str, Any] = {}
    for part in parts:
        found |= json.loads(part.read_text(encoding="utf-8"))
    behind = {COMMIT, _METADATA, *(part.name for part in parts)}
    found |= _sums(folder, [name for name in files(folder) if name not in behind and _final(name) not in found])
    text = json.dumps({"files": found, "sha256": _of_list(found)}, indent=1)
    (folder / SUMS).write_text(text + "\n", encoding="utf-8")
    for part in parts:
        part.unlink()


def damage(folder: StoragePath, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a committed checkpoint, or None. share: (i, n) looks at every n-th file from the i-th.

    Raises PermissionError where a file cannot be read: that is for the user to mend, and nothing is lost.
    """
    try:
        held = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        listed = held["files"]
        whole = held["sha256"] == _of_list(listed)
    except FileNotFoundError:
        return f"it misses {SUMS}"
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        return f"{SUMS} is damaged"
    for name, (expected, digest) in sorted(listed.items())[share[0] :: share[1]]:
        try:
            if (found := size(folder / name)) is None:
                return f"it misses {name}"
            if found != expected:
                return f"{name} holds {found} bytes, {expected} expected"
            if sha256(folder / name) != digest:
                return f"{name} differs from its sha256"
        except PermissionError:
            raise
        except OSError as error:  # a device that fails
            return f"{name}: {error.strerror}"
    return _bookkeeping(folder)


def _bookkeeping(folder: StoragePath) -> str | None:
    """What Orbax writes when it commits: no number depends on it, but other tools read it."""
    for name in (COMMIT, _METADATA):
        if size(folder / name) is None:
            return f"it misses {name}"
    try:
        committed = (folder / COMMIT).read_text(encoding="utf-8")
        about = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
    except ValueError:
        return f"{_METADATA} or {COMMIT} is damaged"
    if not committed.startswith("Checkpoint commit was successful"):
        return f"{COMMIT} is damaged"
    if not isinstance(about, dict) or set(about.get("item_handlers") or ()) != {"state", "meta"}:
        return f"{_METADATA} is damaged"
    return None


def _part(folder: StoragePath, process: int) -> StoragePath:
    return folder / f"sha256.process_{process}.json"


def _final(name: str) -> str:
    """The path inside the checkpoint, once its parts have the names that they commit with."""
    return "/".join(part.split(TMP_DIR_SUFFIX)[0] for part in name.split("/"))


def _sums(folder: StoragePath, names: list[str]) -> dict[str, list[Any]]:
    return {_final(name): [size(folder / name), sha256(folder / name)] for name in sorted(names)}


def _of_list(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
