"""A run's newest checkpoint as a folder that others load: the run directory is enough, the data are not read again."""

import contextlib
import pathlib

import jax

from care_jax import config as configs
from care_jax import models, sharding
from care_jax.data.chat import load_tokenizer
from care_jax.distributed import is_writer
from care_jax.errors import UserError
from care_jax.evaluation.model import local_folder
from care_jax.models import lora
from care_jax.training.export.card import write_card
from care_jax.training.run.bucket import RunDirectory, copied, delivered, is_remote
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.state import load_model, new_adapters


def export_run(run: str | pathlib.Path, folder: str | pathlib.Path, *, adapter: bool = False) -> int:
    """Writes `folder` from the newest checkpoint of a run directory; returns the checkpoint's step.

    A Hugging Face folder: the weights, adapters merged into them; with `adapter` a PEFT folder of the adapters alone.
    Either may lie in a bucket (gs://). Raises UserError where the run holds no checkpoint, or trained no adapters and
    they are asked for.
    """
    if pathlib.Path(folder).resolve() == pathlib.Path(run).resolve():  # compares URLs as well
        raise UserError(f"{folder} is the run itself: choose another folder")
    with contextlib.ExitStack() as stack:
        if is_remote(run):
            place = stack.enter_context(copied(str(run), write=False))
        else:
            place = RunDirectory(pathlib.Path(run), pathlib.Path(run))
        target = stack.enter_context(delivered(folder))
        return _export(place, target, adapter)


def _export(place: RunDirectory, folder: pathlib.Path, adapter: bool) -> int:
    run = place.folder
    if not (run / "config.yaml").is_file():
        raise UserError(f"{place.home}: not a run directory: it holds no config.yaml")
    config = configs.load(run / "config.yaml")
    if adapter and config.model.lora is None:
        raise UserError(f"--adapter: {place.home} trained all weights (model.lora: null), not adapters")
    checkpoints = Checkpoints(place.home / "checkpoints", read_only=True)
    step = checkpoints.latest()
    if step is None:
        raise UserError(f"{place.home}: holds no checkpoint yet")

    mesh = sharding.make_mesh()
    source = local_folder(config.model.path, config.model.revision)
    with jax.set_mesh(mesh):
        if config.model.lora is None:
            model = models.from_config(source, dtype=config.model.dtype)
            like = models.abstract_params(model.arch, config.model.param_dtype, mesh)
            params = checkpoints.restore_trained(step, like, adapters=False)
        else:
            model, params = load_model(config, mesh, source)
            fresh, _ = new_adapters(config, model, mesh)
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh)
            adapters = checkpoints.restore_trained(step, like, adapters=True)
            if adapter:
                base = str(source) if config.model.path == "sample" else config.model.path
                lora.save_adapter(folder, model, adapters, base, config.model.revision)
            else:
                params = lora.merge(model, params, adapters)
        if not adapter:
            models.save_pretrained(folder, model, params, tokenizer=load_tokenizer(str(source)), source=source)
    checkpoints.close()
    if not adapter and is_writer():
        write_card(run, folder)
    return step
