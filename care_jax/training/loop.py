"""A run from its configuration to its export, in the order in which things happen."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from care_jax import config as configs
from care_jax import models, sharding
from care_jax.config import Config
from care_jax.data import pipeline
from care_jax.data.chat import load_tokenizer
from care_jax.distributed import say
from care_jax.evaluation.model import local_folder
from care_jax.models import lora
from care_jax.stopping import StopSignal
from care_jax.textfiles import read_lines
from care_jax.training import placing
from care_jax.training.checks import alarms, before_start
from care_jax.training.data import prepare
from care_jax.training.errors import Diverged, RunFailed, explain_failures
from care_jax.training.evaluation.final_table import final_table
from care_jax.training.evaluation.schedule import Evaluations
from care_jax.training.evaluation.tasks import read_tasks, task_scores
from care_jax.training.export.huggingface import write_export
from care_jax.training.forward import reference as frozen
from care_jax.training.forward.passes import ForwardPass
from care_jax.training.objective import Objective, objective_of
from care_jax.training.run.bucket import StoragePath
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import RunDirectory, run_directory
from care_jax.training.run.identity import Identity, identify
from care_jax.training.run.manifest import write_manifest
from care_jax.training.run.metrics import Recorder
from care_jax.training.run.resume import Start, numerics_environment, open_run
from care_jax.training.state import Built, abstract_state, build, check_folder, like_saved, new_state
from care_jax.training.step import State
from care_jax.training.updates import Updates

__all__ = ["Diverged", "Run", "RunFailed", "repeat", "train"]


@dataclasses.dataclass(frozen=True)
class Run:
    """What `care_jax.train` returns. path: the run directory; metrics: the lines of metrics.jsonl."""

    path: StoragePath
    metrics: list[dict[str, Any]]
    model: Any
    params: Any


def train(config: Config | Mapping[str, Any] | str | os.PathLike, **overrides: Any) -> Run:
    """Trains by a configuration (a Config, a mapping, or the path or name of a YAML file); goes on where a run stopped.

    overrides: keys of the configuration as on the command line (`**{"loss.beta": 0.2}`), or blocks (`loss={...}`).
    Raises UserError for what the configuration or the data get wrong, Interrupted after a signal (the state is saved),
    Diverged where too many updates in a row were not finite, RunFailed where the machine fails (a full disk).
    """
    return _train(Config.from_any(config, **overrides), None)


def repeat(config: Config, identity: Identity, manifest: str) -> Run:
    """Trains as `train` does, and raises UserError before the first step where anything that the run of the manifest
    read is another now. manifest: its path, for the message.
    """
    return _train(config, (identity, f"the run of {manifest}"))


def _train(config: Config, repeats: tuple[Identity, str] | None) -> Run:
    objective = objective_of(config)
    before_start.check_whole_step(config, objective)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    with explain_failures(config.output_dir, lambda: "nothing was begun"), run_directory(config) as place:
        checkpoints = Checkpoints(place.home / "checkpoints", config.checkpoint.keep, config.checkpoint.best)
        with (
            explain_failures(place.home, checkpoints.resume_hint),
            checkpoints,
            jax.set_mesh(mesh),
            StopSignal(config.checkpoint.grace_seconds, checkpoints.resume_hint) as stop,
        ):
            begin = open_run(config, place.folder, checkpoints, mesh, repeats)
            place.upload()  # what cannot be written is said now
            say(configs.summary(begin.config))
            return _run(begin, place, objective, mesh, stop, checkpoints)


def _run(
    begin: Start,
    place: RunDirectory,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    stop: StopSignal,
    checkpoints: Checkpoints,
) -> Run:
    config, start, folder = begin.config, begin.step, place.folder
    if start is not None and begin.meta["last"] == start and place.has_export:
        say(f"{place.home} holds a finished run of {start} steps")
        model, params = models.from_pretrained(str(place.home / "export"), config.model.dtype, mesh)
        return Run(place.home, read_lines(folder / "metrics.jsonl"), model, params)

    # ---- The data: questions, tokens, units, and the plan of every step to be run.
    source = local_folder(config.model.path, config.model.revision)
    check_folder(config, source)
    task_items = read_tasks(config)
    tokenizer = load_tokenizer(str(source))
    data = prepare(config, tokenizer, objective, folder)
    say(data.summary())
    before_start.check_tokens(data, tokenizer)
    before_start.check_best_metric(config, data)
    _say(alarms.truncation_alarm(data.corpus.truncated, len(data.corpus.completion_lengths), config.data.max_length))

    # ---- The model on the mesh, and what trains it.
    built = build(config, mesh, source, data.steps)
    identity = identify(config, source, data.files, data.corpus, built.weights)
    begin.check(identity)
    write_manifest(folder, config, source, identity, built.weights)

    # ---- The reference: what it says of every response that is needed, before the first step.
    layout = pipeline.mismatched_layout(data.layout, data.corpus)
    state_bytes = placing.bytes_per_device(placing.placed_shapes(*abstract_state(built, mesh)))
    forward = ForwardPass(built.model, data.corpus, layout, mesh, stop, state_bytes)
    reference = frozen.reference(config, objective, built, data, forward, folder, mesh)
    if start is None and reference.precomputed and reference.own:
        before_start.check_reference(forward, data, {"params": built.params})

    # ---- The state, new or from the checkpoint, and the updates.
    state, shardings = _state(built, mesh, checkpoints, start, reference.holds_start)
    recorder = Recorder(config, folder, start, data.steps, place.upload)
    tasks = task_scores(config, task_items, built.model, tokenizer, source, mesh, data.steps)
    evaluations = Evaluations(config, objective, data, forward, reference, recorder, folder, tasks)
    if start is not None:
        say(f"resumed at step {start} of {data.steps}")
        if evaluations.missed(start):
            evaluations.run(start, state)
    if start == data.steps:
        say(f"{place.home} holds a finished run of {start} steps, whose export is missing")
    else:
        meta = {
            "config": configs.dump(config),
            "last": data.steps,
            "identity": dataclasses.asdict(identity),
            "where": numerics_environment(mesh),
        }
        updates = Updates(
            config, folder, objective, mesh, stop, checkpoints, built, data, reference, recorder, evaluations, meta
        )
        state = updates.run(state, shardings, start)
        checkpoints.wait()

    # ---- What is left behind.
    final = state.params if state.lora is None else lora.merge(built.model, state.params, state.lora)
    if not place.has_export:
        write_export(place, built.model, final, tokenizer, source)
    _say(None if data.held_out is None else final_table(recorder.lines))
    recorder.close()
    return Run(place.home, recorder.lines, built.model, final)


def _state(
    built: Built, mesh: jax.sharding.Mesh, checkpoints: Checkpoints, start: int | None, keep: bool
) -> tuple[State, State]:
    """The state and its shardings. keep: the starting weights are needed to the end; else nothing holds them."""
    abstract, shardings = abstract_state(built, mesh)
    if start is None:
        state = new_state(built, shardings, keep=keep)
    else:
        state = checkpoints.restore(start, like_saved(built, abstract, shardings))
    built.params = built.adapters = None
    return state, shardings


def _say(text: str | None) -> None:
    if text is not None:
        say(text)
