"""The Hugging Face folder of a run: written at the end of training, or later from the newest checkpoint."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax

from care_jax import config as configs
from care_jax import distributed, models, sharding
from care_jax.config import Config
from care_jax.data.chat import Tokenizer, load_tokenizer
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.evaluation.model import local_folder
from care_jax.models import lora
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder
from care_jax.textfiles import write_whole
from care_jax.training.export.card import card
from care_jax.training.run.bucket import is_remote, upload_model
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import RunDirectory, read_only_directory
from care_jax.training.state import load_model, new_adapters


def write_export(
    directory: RunDirectory, model: Decoder, params: Params, tokenizer: Tokenizer, model_folder: pathlib.Path
) -> None:
    """Writes `export/` in the run directory: the model and its card. All processes call it.

    model_folder: folder of the model that the run started from. The export appears by renaming, so that no reader sees
    a part of it; what a killed export left is removed.
    """
    folder = directory.folder / "export"
    for unfinished in folder.parent.glob(f".{folder.name}.*") if is_writer() else ():
        shutil.rmtree(unfinished)
    models.save_pretrained(folder, model, params, tokenizer=tokenizer, source=model_folder)
    if is_writer():
        write_whole(folder / "README.md", card(directory.folder))
    directory.upload(export=True)
    distributed.barrier("export kept")  # otherwise the others would end during the upload of the first process
    say(f"exported to {directory.home / 'export'}")


def export_run(run: str | pathlib.Path, folder: str | pathlib.Path, *, adapter: bool = False) -> int:
    """Writes `folder` from the newest checkpoint of a run directory, without its data; returns the checkpoint's step.

    A Hugging Face folder, with adapters merged into the weights; with `adapter` a PEFT folder of the adapters alone.
    Both may be in a bucket (gs://). Raises UserError if the run holds no checkpoint, or if `adapter` is set and the run
    trained none.
    """
    if pathlib.Path(folder).resolve() == pathlib.Path(run).resolve():  # compares URLs as well
        raise UserError(f"{folder} is the run itself: choose another folder")
    with read_only_directory(run) as directory, _model_folder(folder) as target:
        return _export(directory, target, adapter)


@contextlib.contextmanager
def _model_folder(target: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a folder to write a model in: `target`, or one whose files are copied to that place in a bucket at the end
    (by the first process).
    """
    if not is_remote(target):
        yield pathlib.Path(target)
        return
    with tempfile.TemporaryDirectory(prefix="care_jax-") as name:
        folder = pathlib.Path(name) / "model"
        yield folder
        if is_writer():
            upload_model(folder, target)
        distributed.barrier("model delivered")


def _export(directory: RunDirectory, folder: pathlib.Path, adapter: bool) -> int:
    run = directory.folder
    if not (run / "config.yaml").is_file():
        raise UserError(f"{directory.home}: not a run directory: it holds no config.yaml")
    config = configs.load(run / "config.yaml")
    if adapter and config.model.lora is None:
        raise UserError(f"--adapter: {directory.home} trained all weights (model.lora: null), not adapters")
    with Checkpoints(directory.home / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{directory.home}: holds no checkpoint yet")
        mesh = sharding.make_mesh()
        model_folder = local_folder(config.model.path, config.model.revision)
        with jax.set_mesh(mesh):
            model, params, adapters = _restore(config, checkpoints, step, mesh, model_folder)
            if adapter:
                assert adapters is not None
                base = str(model_folder) if config.model.path == "sample" else config.model.path
                lora.save_adapter(folder, model, adapters, base, config.model.revision)
                return step
            merged = params if adapters is None else lora.merge(model, params, adapters)
            tokenizer = load_tokenizer(str(model_folder))
            models.save_pretrained(folder, model, merged, tokenizer=tokenizer, source=model_folder)
    if is_writer():
        write_whole(folder / "README.md", card(run))
    return step


def _restore(
    config: Config, checkpoints: Checkpoints, step: int, mesh: jax.sharding.Mesh, model_folder: pathlib.Path
) -> tuple[Decoder, Params, Params | None]:
    """Returns the model, its weights (of the base if adapters were trained), and the adapters of a checkpoint."""
    if config.model.lora is None:
        model = models.from_config(model_folder, dtype=config.model.dtype)
        like = models.abstract_params(model.arch, config.model.param_dtype, mesh)
        return model, checkpoints.restore_trained(step, like, adapters=False), None
    model, params = load_model(config, mesh, model_folder)
    fresh, _ = new_adapters(config, model, mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh)
    return model, params, checkpoints.restore_trained(step, like, adapters=True)
