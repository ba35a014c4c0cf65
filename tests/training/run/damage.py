"""Damages files in ways that are drawn from a seed."""

import contextlib
import os
import pathlib
import random
from collections.abc import Iterator

KINDS = ("truncate", "flip", "delete", "permissions")


def harm(folder: pathlib.Path, seed: int) -> str:
    """Damages one file below `folder`; returns kind and file. The kinds take turns by seed, the rest is drawn."""
    draw = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    if kind == "delete" or (kind in ("truncate", "flip") and not data):
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    else:
        path.chmod(0)
    return f"{kind} {path.relative_to(folder)}"


@contextlib.contextmanager
def no_privileges(folder: pathlib.Path) -> Iterator[None]:
    """While entered, the process is a user who needs permissions: root can read every file."""
    if os.geteuid() != 0:
        yield
        return
    for path in folder.rglob("*"):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
