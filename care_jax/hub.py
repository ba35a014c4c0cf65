"""Which names are repositories of the Hugging Face hub."""

import os
import pathlib
import re


def is_hub_id(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is a hub id: written owner/name, and not the path of a file or folder on this machine."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path)) is not None and not pathlib.Path(path).exists()
