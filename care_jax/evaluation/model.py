"""A finished model, opened to be asked or scored: weights on a mesh, tokenizer, and the name it goes by."""

import pathlib
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from care_jax import models
from care_jax.data.chat import load_tokenizer
from care_jax.data.rows.files import SAMPLE


@dataclass(frozen=True)
class LoadedModel:
    """name: what reports call it. folder: where its files lie on this machine."""

    name: str
    folder: pathlib.Path
    model: Any
    params: Any
    tokenizer: Any


def local_folder(path: str, revision: str | None = None) -> pathlib.Path:
    """The local folder of `model.path`: the packaged sample's, a folder, or a hub id's download."""
    return SAMPLE / "model" if path == "sample" else models.resolve(path, revision)


def model_folder(path: str) -> pathlib.Path:
    """The local folder of a model: a folder, a hub id, the packaged `sample`, or a run directory, whose export it is.

    Raises UserError where there is no such thing.
    """
    folder = local_folder(path)
    exported = folder / "export"
    return exported if not (folder / "config.json").exists() and (exported / "config.json").is_file() else folder


def system_name(path: str) -> str:
    """`owner/name` of a hub id, the last name of a folder, and of a run's export the run's."""
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        return path
    place = place.resolve()
    return place.parent.name if place.name == "export" else place.name


def open_model(path: str, mesh: Mesh, dtype: str = "float32") -> LoadedModel:
    """Loads a model; dtype: of its weights and of the computation. `sample` has random weights, always the same.

    path: as for `model_folder`, or a PEFT adapter folder, whose adapters are merged into the base that it names.
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
