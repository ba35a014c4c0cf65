"""Who answers the prompts of `care-jax evaluate` and `generate`: an endpoint, or a model on this machine."""

import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from care_jax.errors import INTERRUPTED
from care_jax.evaluation.answers.ask import ask_file
from care_jax.evaluation.answers.prompts import GenerationSettings, PromptRow
from care_jax.evaluation.endpoint.client import Endpoint
from care_jax.evaluation.items import Item
from care_jax.stopping import Interrupted, StopSignal, interruptible
from care_jax.textfiles import progress_bar

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from care_jax.evaluation.model import LoadedModel
else:
    Mesh = LoadedModel = object  # jax is imported when a model is loaded


class EndpointAnswerer:
    """An OpenAI-compatible endpoint. It gives no log-probabilities of choices."""

    has_weights = False

    def __init__(self, endpoint: Endpoint):
        self.name, self._endpoint = endpoint.model, endpoint

    def answer(self, prompts: Sequence[PromptRow], path: pathlib.Path, settings: GenerationSettings) -> tuple[int, str]:
        """Writes the answers to `path`; returns the exit status and a summary. Every reply that arrived is kept."""
        summary = ""
        with interruptible() as status, progress_bar(len(prompts) * settings.n, "answers", "answer") as bar:
            counts = ask_file(self._endpoint, prompts, path, settings, bar.update)
            summary = f"{len(prompts)} rows: " + ", ".join(f"{count} {name}" for name, count in counts.items())
        return status.value, summary

    def is_writer(self) -> bool:
        return True


class ModelAnswerer:
    """A model on this machine. The model, and jax, are loaded when it first answers."""

    has_weights = True

    def __init__(self, path: str, dtype: str):
        self._path, self._dtype = path, dtype

    @property
    def name(self) -> str:
        from care_jax.evaluation.model import system_name

        return system_name(self._path)

    def answer(self, prompts: Sequence[PromptRow], path: pathlib.Path, settings: GenerationSettings) -> tuple[int, str]:
        """Writes the answers to `path`; returns the exit status and a summary. Continues a file that was cut off."""
        from care_jax.evaluation.answers.generate import generate_file

        model, mesh = self._loaded
        try:
            with StopSignal() as stop:
                before, total = generate_file(
                    model, prompts, path, settings, mesh, check=lambda: stop.check("between two answers")
                )
        except Interrupted as stopped:
            print(f"care-jax: {stopped}", file=sys.stderr)
            return INTERRUPTED, ""
        return 0, f"{total} answers to {len(prompts)} rows" + (f", {before} of them from before" if before else "")

    def score_choices(self, items: Sequence[Item], task: str, path: pathlib.Path, template: str) -> None:
        """Writes the log-probabilities of the items' choices to `path`."""
        from care_jax.evaluation.answers.logprobs import score_file

        model, mesh = self._loaded
        with progress_bar(len(items), "items", "item") as bar:
            score_file(model, items, task, path, template, mesh)
            bar.update(len(items))

    def is_writer(self) -> bool:
        from care_jax.distributed import is_writer

        return is_writer()

    @functools.cached_property
    def _loaded(self) -> tuple[LoadedModel, Mesh]:
        from care_jax import sharding
        from care_jax.evaluation.model import open_model

        mesh = sharding.make_mesh()
        return open_model(self._path, mesh, self._dtype), mesh


Answerer: TypeAlias = EndpointAnswerer | ModelAnswerer
