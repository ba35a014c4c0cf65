"""The sha256 of every file of a checkpoint: written before it commits, checked before it is used.

Orbax alone restores a flipped byte as a wrong value. Each process of a run writes the sums of its own files when they
are written; the first joins them and adds the rest. `sha256.json` holds {files: {path: [bytes, sha256]}, sha256}, the
last being that of the list itself.
"""

import hashlib
import json
import pathlib
from typing import Any

from orbax.checkpoint.utils import TMP_DIR_SUFFIX

SUMS = "sha256.json"
# Orbax writes these two behind us, when it commits; they are read by no restore of ours.
_COMMIT, _METADATA = "commit_success.txt", "_CHECKPOINT_METADATA"


def write_part(folder: pathlib.Path, process: int) -> None:
    """The sums of what this process alone has written into a save that has not committed yet."""
    own = [path for path in folder.glob(f"*/ocdbt.process_{process}/**/*") if path.is_file()]
    _part(folder, process).write_text(json.dumps(_sums(folder, own)), encoding="utf-8")


def seal(folder: pathlib.Path) -> None:
    """Joins the parts of all processes and adds the files that are nobody's own. For one process, before the commit."""
    parts = sorted(folder.glob("sha256.process_*.json"))
    files: dict[str, Any] = {}
    for part in parts:
        files |= json.loads(part.read_text(encoding="utf-8"))
    behind = {folder / _COMMIT, folder / _METADATA, *parts}
    rest = [path for path in folder.rglob("*") if path.is_file() and path not in behind]
    files |= _sums(folder, [path for path in rest if _name(folder, path) not in files])
    text = json.dumps({"files": files, "sha256": _of_list(files)}, indent=1)
    (folder / SUMS).write_text(text + "\n", encoding="utf-8")
    for part in parts:
        part.unlink()


def damage(folder: pathlib.Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a committed checkpoint, or None. share: (i, n) looks at every n-th file from the i-th.

    Raises PermissionError where a file cannot be read: that is for the user to mend, and nothing is lost.
    """
    try:
        held = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        files = held["files"]
        whole = held["sha256"] == _of_list(files)
    except FileNotFoundError:
        return f"it misses {SUMS}"
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        return f"{SUMS} is damaged"
    for name, (size, digest) in sorted(files.items())[share[0] :: share[1]]:
        path = folder / name
        try:
            if not path.is_file():
                return f"it misses {name}"
            if (found := path.stat().st_size) != size:
                return f"{name} holds {found} bytes, {size} expected"
            if _sha256(path) != digest:
                return f"{name} differs from its sha256"
        except PermissionError:
            raise
        except OSError as error:  # a device that fails
            return f"{name}: {error.strerror}"
    return _bookkeeping(folder)


def _bookkeeping(folder: pathlib.Path) -> str | None:
    """What Orbax writes when it commits: no number depends on it, but other tools read it."""
    try:
        committed = (folder / _COMMIT).read_text(encoding="utf-8")
        about = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        return f"it misses {pathlib.Path(error.filename).name}"
    except ValueError:
        return f"{_METADATA} or {_COMMIT} is damaged"
    if not committed.startswith("Checkpoint commit was successful"):
        return f"{_COMMIT} is damaged"
    if not isinstance(about, dict) or set(about.get("item_handlers") or ()) != {"state", "meta"}:
        return f"{_METADATA} is damaged"
    return None


def _part(folder: pathlib.Path, process: int) -> pathlib.Path:
    return folder / f"sha256.process_{process}.json"


def _name(folder: pathlib.Path, path: pathlib.Path) -> str:
    """The path inside the checkpoint, once its parts have the names that they commit with."""
    return "/".join(part.split(TMP_DIR_SUFFIX)[0] for part in path.relative_to(folder).parts)


def _sums(folder: pathlib.Path, paths: list[pathlib.Path]) -> dict[str, list[Any]]:
    return {_name(folder, path): [path.stat().st_size, _sha256(path)] for path in sorted(paths)}


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_list(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
