"""Which names are repositories of the Hugging Face hub."""

import os
import pathlib
import re


def is_hub_id(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a hub id: it is written owner/name, and no file or folder on this machine has that path."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path)) is not None and not pathlib.Path(path).exists()
