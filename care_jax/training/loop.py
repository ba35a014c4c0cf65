"""A run from its configuration to its export, in the order in which things happen."""

import dataclasses
import os
from collections.abc import Mapping

import jax

from care_jax import config as configs
from care_jax import models, sharding
from care_jax.config import Config
from care_jax.data import pipeline
from care_jax.data.chat import load_tokenizer
from care_jax.distributed import say
from care_jax.evaluation.model import LoadedModel, local_folder
from care_jax.models import lora
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder
from care_jax.stopping import Interrupted, StopSignal
from care_jax.textfiles import JsonObject, read_lines
from care_jax.training.batches import BatchSupply
from care_jax.training.checks import alarms, before_start
from care_jax.training.context import RunContext
from care_jax.training.data import prepare
from care_jax.training.errors import Diverged, RunFailed, explain_failures
from care_jax.training.evaluation.final_table import final_table
from care_jax.training.evaluation.schedule import EvaluationSchedule
from care_jax.training.evaluation.tasks import TaskScores, read_tasks
from care_jax.training.export.huggingface import write_export
from care_jax.training.forward.passes import ForwardPass
from care_jax.training.forward.reference import compute_reference
from care_jax.training.objective import objective_of
from care_jax.training.placement import bytes_per_device, with_shardings
from care_jax.training.recording import StepRecords
from care_jax.training.run.bucket import StoragePath
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.directory import run_directory
from care_jax.training.run.identity import Identity, identify
from care_jax.training.run.manifest import write_manifest
from care_jax.training.run.metrics import Recorder
from care_jax.training.run.resume import Start, numerics_environment, open_run
from care_jax.training.run.save_schedule import SaveSchedule
from care_jax.training.state import (
    TrainStep,
    abstract_state,
    build,
    check_model_folder,
    compile_step,
    jit_step,
    new_state,
    restore_target,
)
from care_jax.training.step import State

__all__ = ["Diverged", "Run", "RunFailed", "repeat", "train"]


@dataclasses.dataclass(frozen=True)
class Run:
    """What `care_jax.train` returns. path: the run directory; metrics: the lines of metrics.jsonl; params: the trained
    weights, with the adapters merged.
    """

    path: StoragePath
    metrics: list[JsonObject]
    model: Decoder
    params: Params


def train(config: Config | Mapping[str, object] | str | os.PathLike, **overrides: object) -> Run:
    """Trains by a configuration (a Config, a mapping, or the path or name of a YAML file), or resumes its run.

    overrides: keys of the configuration as on the command line (`**{"loss.beta": 0.2}`), or blocks (`loss={...}`).
    Raises UserError for mistakes in the configuration or the data; Interrupted after a signal (the same call
    resumes); Diverged if too many updates in a row were not finite; RunFailed if the machine fails (a full disk).
    """
    return _open(Config.from_any(config, **overrides))


def repeat(config: Config, identity: Identity, manifest: str) -> Run:
    """Repeats the run of a manifest: trains as `train` does, but raises UserError before the first step if what the
    run read has changed. identity: the identity in the manifest. manifest: its path, for the message.
    """
    return _open(config, (identity, f"the run of {manifest}"))


def _open(config: Config, expected: tuple[Identity, str] | None = None) -> Run:
    """Runs in the run directory. expected: the identity that the run must have, and the name of the run that had it."""
    objective = objective_of(config)
    before_start.check_whole_step(config, objective)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    with explain_failures(config.output_dir, lambda: "nothing was begun"), run_directory(config) as directory:
        checkpoints = Checkpoints(directory.home / "checkpoints", config.checkpoint.keep, config.checkpoint.best)
        with (
            explain_failures(directory.home, checkpoints.resume_hint),
            checkpoints,
            jax.set_mesh(mesh),
            StopSignal(config.checkpoint.grace_seconds, checkpoints.resume_hint) as stop,
        ):
            start = open_run(config, directory.folder, checkpoints, mesh, expected)
            directory.upload()  # so that a bucket that cannot be written is reported before the work begins
            say(configs.summary(start.config))
            return _run(RunContext(start.config, objective, mesh, directory, checkpoints, stop), start)


def _run(run: RunContext, start: Start) -> Run:
    """Reads, builds, trains and exports."""
    config, mesh, directory, folder = run.config, run.mesh, run.directory, run.directory.folder
    if start.step is not None and start.meta["last"] == start.step and directory.has_export:
        say(f"{directory.home} holds a finished run of {start.step} steps")
        model, params = models.from_pretrained(str(directory.home / "export"), config.model.dtype, mesh)
        return Run(directory.home, read_lines(folder / "metrics.jsonl"), model, params)

    # ---- The data: questions, tokens, units, and the plan of every step.
    model_folder = local_folder(config.model.path, config.model.revision)
    check_model_folder(config, model_folder)
    task_items = read_tasks(config)
    tokenizer = load_tokenizer(str(model_folder))
    data = prepare(config, tokenizer, run.objective, folder)
    say(data.summary())
    before_start.check_tokens(data, tokenizer)
    before_start.check_best_metric(config, data)
    corpus = data.corpus
    if alarm := alarms.truncation_alarm(corpus.truncated, len(corpus.completion_lengths), config.data.max_length):
        say(alarm)

    # ---- The model on the mesh, its optimizer, and a check that a resumed run reads what it read before.
    setup, weights = build(config, mesh, model_folder, data.steps)
    identity = identify(config, model_folder, data.files, corpus, weights.fingerprint)
    start.check(identity)
    write_manifest(folder, config, model_folder, identity, weights.fingerprint)

    # ---- The reference: the logps that the steps and the evaluation need, or (mode online) the weights that give them.
    state_shapes, shardings = abstract_state(setup, weights, mesh)
    pass_shape = pipeline.mismatched_shape(data.source.shape, corpus)
    state_bytes = bytes_per_device(with_shardings(state_shapes, shardings))
    forward = ForwardPass(setup.model, corpus, pass_shape, mesh, run.stop, state_bytes)
    reference = compute_reference(run, weights, data, forward)
    if start.step is None and reference.precomputed and reference.is_initial_policy:
        before_start.check_reference(reference, data, {"params": weights.params})

    # ---- The state: new, or from the checkpoint.
    if start.step is None:
        state = new_state(setup, weights, shardings, keep=reference.keeps_initial_weights)
    else:
        state = run.checkpoints.restore(start.step, restore_target(weights, state_shapes, shardings))
    del weights  # what is still needed of them is in the state or the reference
    recorder = Recorder(run, start.step, data.steps)
    tasks = None
    if config.evaluation is not None:
        policy_model = LoadedModel(config.name, model_folder, setup.model, {}, tokenizer)
        tasks = TaskScores(config, task_items, policy_model, mesh, data.steps)
    evaluations = EvaluationSchedule(run, data, reference, recorder, tasks)
    if start.step is not None:
        say(f"resumed at step {start.step} of {data.steps}")
        if evaluations.missed(start.step):
            evaluations.run(start.step, state)

    # ---- The steps.
    if start.step == data.steps:
        say(f"{directory.home} holds a finished run of {start.step} steps, whose export is missing")
    else:
        batches = BatchSupply(run, data, reference, recorder, 1 if start.step is None else start.step + 1)
        jitted = jit_step(config, run.objective, setup, shardings, batches.shardings)
        train_step, seconds = compile_step(jitted, state, batches.peek())
        recorder.record_compilation(seconds)
        if start.step is None:
            evaluations.run(0, state)
        meta: JsonObject = {  # of each checkpoint
            "config": configs.dump(config),
            "last": data.steps,
            "identity": dataclasses.asdict(identity),
            "where": numerics_environment(mesh),
        }
        saves = SaveSchedule(run, recorder, data.steps, meta)
        with StepRecords(run, setup, data, reference, recorder) as records:
            state = take_steps(state, train_step, batches, records, evaluations, saves)
        run.checkpoints.wait()

    # ---- The export.
    params = state.params if state.lora is None else lora.merge(setup.model, state.params, state.lora)
    if not directory.has_export:
        write_export(directory, setup.model, params, tokenizer, model_folder)
    if data.held_out is not None and (table := final_table(recorder.lines)):
        say(table)
    recorder.close()
    return Run(directory.home, recorder.lines, setup.model, params)


def take_steps(
    state: State,
    train_step: TrainStep,
    batches: BatchSupply,
    records: StepRecords,
    evaluations: EvaluationSchedule,
    saves: SaveSchedule,
) -> State:
    """Takes the remaining steps; returns the last state. Raises Interrupted after a signal, once the state is saved;
    Diverged; and RunFailed if the machine fails.
    """
    batch = next(batches)
    for step in range(batches.first, batches.last + 1):
        records.begin(step)
        state, metrics = train_step(state, batch.arrays)
        records.add(batch, metrics, state)
        saving, evaluating = saves.due(step), evaluations.due(step)
        if step < batches.last:
            batch = next(batches)  # placed while the devices work on this step
        if evaluating or saving:
            records.flush(state)
        if evaluating:
            try:
                evaluations.run(step, state)
            except Interrupted:
                saving = True  # the resumed run makes up for the evaluation
        if saving:
            saves.save(step, state, evaluations.metrics_after(step))
        saves.stop_if_requested(step)
    return state
