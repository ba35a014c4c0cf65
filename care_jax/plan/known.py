"""The config.json of the recipes' models, in known_models/, so that planning them downloads nothing."""

import pathlib

from care_jax import models
from care_jax.errors import UserError
from care_jax.evaluation.model import local_folder
from care_jax.hub import is_hub_id
from care_jax.models.arch import Arch

_FOLDER = pathlib.Path(__file__).with_name("known_models")
KNOWN = {file.stem.replace("--", "/"): file for file in sorted(_FOLDER.glob("*.json"))}  # hub id -> its config.json


def arch_of(path: str, revision: str | None = None) -> Arch:
    """Returns the Arch of `model.path`: from the folder's config.json, else from KNOWN, else from the hub.

    Raises UserError if none of them has it.
    """
    if path in KNOWN and not pathlib.Path(path).expanduser().is_dir():
        return models.read_config(KNOWN[path])
    if not is_hub_id(path):
        return models.read_config(local_folder(path, revision))
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return models.read_config(huggingface_hub.hf_hub_download(path, "config.json", revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model.path: {path}: no such folder, and no config.json from the hub: {error}") from error
