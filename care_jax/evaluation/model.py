"""Models that answer or score: weights on a mesh, the tokenizer, and the name of the system in reports."""

import pathlib
from dataclasses import dataclass

from jax.sharding import Mesh

from care_jax import models
from care_jax.data.chat import Tokenizer, load_tokenizer
from care_jax.data.rows.files import SAMPLE
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder


@dataclass(frozen=True)
class LoadedModel:
    """A model, ready to be used. name: its name in reports. folder: the local folder of its files."""

    name: str
    folder: pathlib.Path
    model: Decoder
    params: Params
    tokenizer: Tokenizer


def local_folder(path: str, revision: str | None = None) -> pathlib.Path:
    """Returns the local folder of `model.path`: the packaged `sample`, a folder, or the download of a hub id."""
    return SAMPLE / "model" if path == "sample" else models.resolve(path, revision)


def model_folder(path: str) -> pathlib.Path:
    """Returns the local folder of a folder, a hub id, the packaged `sample`, or a run directory (its export).

    Raises UserError if there is none.
    """
    folder = local_folder(path)
    exported = folder / "export"
    return exported if not (folder / "config.json").exists() and (exported / "config.json").is_file() else folder


def system_name(path: str) -> str:
    """Returns the name of a model in reports: a hub id itself, the name of a folder, or of the run of an export."""
    folder = pathlib.Path(path).expanduser()
    if not folder.exists():
        return path
    folder = folder.resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def open_model(path: str, mesh: Mesh, dtype: str = "float32") -> LoadedModel:
    """Loads a model. dtype: weight and compute dtype. The weights of `sample` are random, always the same.

    path: as in `model_folder`, or a folder of PEFT adapters, which are merged into the base model that it names.
    """
    folder = adapter_folder = model_folder(path)
    has_adapters = (folder / models.lora.CONFIG).is_file() and not (folder / "config.json").exists()
    if has_adapters:
        folder = local_folder(*models.lora.base_of(adapter_folder))
    tokenizer = load_tokenizer(str(folder))
    if path == "sample":
        model = models.from_config(folder, dtype=dtype)
        params = models.init_params(model, 0, mesh, param_dtype=dtype)
    else:
        model, params = models.from_pretrained(folder, dtype, mesh)
    if has_adapters:
        with_adapters, adapters = models.lora.load_adapter(adapter_folder, model, mesh)
        params = models.lora.merge(with_adapters, params, adapters, dtype)
    return LoadedModel(system_name(path), folder, model, params, tokenizer)
