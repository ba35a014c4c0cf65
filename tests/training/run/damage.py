"""Ways in which files come to harm, drawn from a seed."""

import contextlib
import os
import pathlib
import random
from collections.abc import Iterator

KINDS = ("truncate", "flip", "delete", "permissions")


def harm(folder: pathlib.Path, seed: int) -> str:
    """Harms one file below `folder`: the kind is that of the seed's turn, the file and place are drawn. Says which."""
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
    """As a user whom permissions bind: root reads whatever it likes."""
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
