"""A run from its configuration to its export, in the order in which things happen."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from care_jax import config as configs
from care_jax import losses, models, sharding
from care_jax.config import Config, steps_of
from care_jax.data import pipeline
from care_jax.data.chat import load_tokenizer
from care_jax.evaluation.opened import local_folder
from care_jax.models import lora, safetensors_io
from care_jax.training import evaluate, gates, placing
from care_jax.training.checkpoints import Checkpoints
from care_jax.training.datasets import prepare
from care_jax.training.forward import ForwardPass
from care_jax.training.objective import LOG_RATIO, Objective, make_objective
from care_jax.training.optimizers import make_optimizer, make_schedule
from care_jax.training.reference import Cache, fingerprint
from care_jax.training.run_directory import open_run, say, write_manifest
from care_jax.training.signals import Interrupted, StopSignal
from care_jax.training.step import init_state, make_step
from care_jax.training.table import final_table
from care_jax.training.trackers import Recorder, read_lines


class Diverged(RuntimeError):
    """Too many updates in a row had a non-finite loss or gradient."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What `care_jax.train` returns. path: the run directory; metrics: the lines of metrics.jsonl."""

    path: pathlib.Path
    metrics: list[dict[str, Any]]
    model: Any
    params: Any


def train(config: Config | Mapping[str, Any] | str | os.PathLike, **overrides: Any) -> Run:
    """Trains by a configuration (a Config, a mapping, or the path or name of a YAML file); goes on where a run stopped.

    overrides: keys of the configuration as on the command line (`**{"loss.beta": 0.2}`), or blocks (`loss={...}`).
    Raises UserError for what the configuration or the data get wrong, Interrupted after a signal (the state is saved),
    Diverged where too many updates in a row were not finite.
    """
    config = Config.from_any(config, **overrides)
    objective = make_objective([(losses.bind(one.name, **one.hyperparameters), one.weight) for one in config.losses])
    gates.whole_step(config, objective)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    folder, config = open_run(config)
    say(configs.summary(config))
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep, config.checkpoint.best)
    # Closed whatever ends the run: what Orbax does beside us must not outlive it.
    with contextlib.closing(checkpoints), jax.set_mesh(mesh), StopSignal() as stop:
        return _run(config, folder, objective, mesh, stop, checkpoints)


def _run(
    config: Config,
    folder: pathlib.Path,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    stop: StopSignal,
    checkpoints: Checkpoints,
) -> Run:
    start = checkpoints.latest() if config.resume != "never" else None
    if start is not None and (folder / "export").exists() and checkpoints.meta(start)["last"] == start:
        say(f"{folder} holds a finished run of {start} steps")
        model, params = models.from_pretrained(folder / "export", config.model.dtype, mesh)
        return Run(folder, read_lines(folder / "metrics.jsonl"), model, params)

    # ---- The data: questions, tokens, units, and the plan of every step to be run.
    rows = placing.own_rows(mesh, config.batch.microbatch_rows)
    source = local_folder(config.model.path, config.model.revision)
    check_folder(config, source)
    tokenizer = load_tokenizer(str(source))
    data = prepare(config, tokenizer, objective, folder)
    total = data.steps
    say(data.summary())
    gates.tokens(data, tokenizer)
    gates.best_metric(config, data)

    # ---- The model on the mesh, and what trains it: all weights, or adapters on a base that stays.
    model, params = load_model(config, mesh, source)
    weights = fingerprint(params)
    write_manifest(folder, config, data.files, weights)
    schedule = make_schedule(config.optimizer, total)
    adapters, adapter_shardings = new_adapters(config, model, mesh)
    decay = models.decay_mask(model.arch) if adapters is None else None
    optimizer = make_optimizer(config.optimizer, schedule, decay)

    # ---- The reference: one pass over the distinct responses that the steps to be run and the evaluation need.
    # It is the starting weights, unless another model is named.
    responses_layout = pipeline.mismatched_layout(data.layout, data.corpus)
    forward = ForwardPass(model, data.corpus, responses_layout, mesh, rows, stop)
    held_out = data.held_out
    own_reference = config.reference.path is None
    precomputed = objective.needs_ref and config.reference.mode == "precompute"
    ref_params = params if objective.needs_ref else None
    if objective.needs_ref and config.reference.path is not None:
        _, ref_params = load_model(config, mesh, local_folder(config.reference.path))
    if precomputed:
        ref_weights = weights if own_reference else fingerprint(ref_params)
        key = {"weights": ref_weights, "dtype": config.model.dtype, "attention": config.model.attention}
        cache = Cache(folder / "reference", key)
        ran = forward.fill(cache, data.sequences, {"params": ref_params})
        say(f"reference: {len(data.sequences)} sequences, {ran} microbatches run, the rest from {cache.folder}")
        digests = forward.digests(data.sequences)
        data.ref_logps = dict(zip(data.sequences, cache.values(digests).tolist()))
        if start is None and own_reference:
            gates.reference(forward, data, {"params": params})
        ref_params = None

    # ---- The state, new or from the checkpoint.
    def new_state(params, adapters):
        return init_state(params, optimizer, adapters)

    abstract = jax.eval_shape(new_state, params, adapters)
    shardings = placing.state_shardings(
        abstract, models.param_shardings(model.arch, mesh), optimizer, mesh, adapter_shardings
    )
    if start is None:
        keep = ref_params is not None and own_reference  # an online reference needs the start's weights to the end
        make = jax.jit(new_state, out_shardings=shardings, donate_argnums=() if keep else (0, 1))
        state = make(params, adapters)
    else:
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        state = checkpoints.restore(start, like if adapters is None else dataclasses.replace(like, params=params))
        say(f"resumed at step {start} of {total}")
    del params

    recorder = Recorder(config, folder, start, total)
    last_evaluation: tuple[int, dict[str, Any]] = -1, {}

    def evaluate_now(step: int) -> None:
        nonlocal last_evaluation
        if held_out is None:
            return
        began = time.perf_counter()
        fresh = step == 0 and precomputed and own_reference
        reference: np.ndarray | None = None
        if objective.needs_ref:
            reference = (
                data.values(held_out.sequences)
                if precomputed
                else forward.run(held_out.sequences, {"params": ref_params})
            )
        # The policy is still its own reference: the pass over it is the evaluation's.
        logps = reference if fresh and reference is not None else forward.run(held_out.sequences, state.variables())
        found = evaluate.measure(objective, held_out, logps, reference)
        last_evaluation = step, found
        recorder.evaluation(step, found | {"eval/wall_seconds": time.perf_counter() - began})

    every_evaluation = None if config.eval_every is None else steps_of(config.eval_every, total)

    def evaluation_due(step: int) -> bool:
        return step == total or (every_evaluation is not None and step % every_evaluation == 0)

    evaluated = any(line["step"] == start and "eval/loss" in line for line in recorder.lines)
    if start is not None and evaluation_due(start) and not evaluated:
        evaluate_now(start)  # a signal ended the run in the middle of it

    if start == total:
        say(f"{folder} holds a finished run of {total} steps, whose export is missing")
    else:
        # ---- One compiled step for the whole run; everything static comes from the data's plan.
        batches = data.batches(start or 0, rows)
        step_number, host_batch, told = next(batches)
        batch_shardings = placing.batch_shardings(host_batch, mesh)
        step = make_step(
            model, objective, optimizer,
            accumulate_dtype=jnp.dtype(config.optimizer.accumulate_dtype), examples=config.batch.examples,
        )  # fmt: skip
        everywhere = sharding.replicated(mesh)
        jitted = jax.jit(
            step,
            in_shardings=(shardings, batch_shardings),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        )

        def place(host_batch):
            batch = placing.to_devices(host_batch, batch_shardings, config.batch.microbatch_rows)
            if objective.needs_ref and not precomputed:
                batch = forward.with_reference(batch, {"params": ref_params})
            return batch

        batch = place(host_batch)
        began = time.perf_counter()
        compiled = jitted.lower(state, batch).compile()
        say(f"train step compiled in {time.perf_counter() - began:.1f} s")
        if start is None:
            evaluate_now(0)

        # 2 a multiply-add, three passes' worth of them (6 N a token); what remat computes again is not counted.
        flops = 6.0 * models.num_params(model.arch)
        every_save = None if config.checkpoint.every is None else steps_of(config.checkpoint.every, total)
        saved_at = time.monotonic()
        in_flight: tuple[int, dict[str, Any], dict[str, Any], float] | None = None

        def settle() -> None:
            """Fetches and records the step in flight; the next one has been dispatched already."""
            nonlocal in_flight
            if in_flight is None:
                return
            number, metrics, host, dispatched = in_flight
            in_flight = None
            values = {name: np.asarray(value).item() for name, value in jax.device_get(metrics).items()}
            skipped = int(values.pop("skipped"))
            log_ratio = values.pop(LOG_RATIO, 0.0)
            values["learning_rate"] = float(schedule(number - 1))
            recorder.step(number, values, host, flops, dispatched)
            if skipped:
                say(f"step {number}: loss or gradient not finite, update skipped ({skipped} in a row)")
            if skipped >= config.nonfinite.max_consecutive:
                checkpoints.wait()
                raise Diverged(
                    f"step {number}: {skipped} updates in a row were not finite (nonfinite.max_consecutive); "
                    f"the last good checkpoint is that of step {checkpoints.latest()}"
                )
            if number == 1 and objective.needs_ref and own_reference:
                gates.first_step(values, log_ratio, config.model.dtype)

        recorder.start_clock()
        profile = config.profile
        while True:
            if profile is not None and step_number == profile.start:
                jax.profiler.start_trace(str(folder / "profile"))
            dispatched = time.perf_counter()
            state, metrics = compiled(state, batch)
            settle()
            in_flight = (step_number, metrics, told, dispatched)
            number = step_number
            if profile is not None and number == min(profile.start + profile.steps - 1, total):
                settle()
                jax.profiler.stop_trace()
            evaluating = evaluation_due(number)
            minutes = config.checkpoint.minutes
            saving = (
                number == total
                or stop.requested
                or (every_save is not None and number % every_save == 0)
                or (minutes is not None and time.monotonic() - saved_at >= 60 * minutes)
            )
            if number < total:
                waiting = time.perf_counter()
                step_number, host_batch, told = next(batches)
                recorder.waited(time.perf_counter() - waiting)
                batch = place(host_batch)
            if evaluating or saving:
                settle()
            if evaluating:
                try:
                    evaluate_now(number)
                except Interrupted:
                    saving = True  # the evaluation is made up for by the next start
            if saving:
                recorder.sync()  # metrics up to this step are on disk before the checkpoint commits
                measured = last_evaluation[1] if last_evaluation[0] == number else None
                checkpoints.save(number, state, {"config": configs.dump(config), "last": total}, measured)
                saved_at = time.monotonic()
            if number == total and not stop.requested:
                break
            if stop.requested:
                checkpoints.wait()
                recorder.close()
                raise Interrupted(f"stopped at step {number} of {total}; saved: the same command goes on from there")

    checkpoints.wait()
    final = state.params if state.lora is None else lora.merge(model, state.params, state.lora)
    export(folder / "export", model, final, tokenizer, source)
    if held_out is not None:
        say(final_table(recorder.lines))
    recorder.close()
    return Run(folder, recorder.lines, model, final)


def check_folder(config: Config, folder: pathlib.Path) -> None:
    """Raises UserError for a family or a folder that cannot be loaded, before anything is read or tokenized."""
    models.read_config(folder)
    if config.model.init == "pretrained":
        safetensors_io.folder_tensors(folder)


def load_model(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path) -> tuple[Any, Any]:
    """The model and its weights on the mesh: pretrained, or random from a config.json and the run's seed.

    With `model.lora` the weights are a base in its `base_dtype`, and the model takes adapters.
    """
    options = {"dtype": config.model.dtype, "remat": config.model.remat, "attention": config.model.attention}
    adapted = config.model.lora
    dtype = config.model.param_dtype if adapted is None else adapted.base_dtype
    if config.model.init == "random":
        model = models.from_config(folder, **options)
        params = models.init_params(model, config.seed, mesh, param_dtype=dtype)
    else:
        model, params = models.from_pretrained(folder, mesh=mesh, param_dtype=dtype, **options)
    return (model if adapted is None else lora.attach(model, adapted.r, adapted.alpha)), params


def new_adapters(config: Config, model: Any, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Fresh adapters and their shardings, (None, None) in full training. B is zero: the start is the base."""
    adapted = config.model.lora
    if adapted is None:
        return None, None
    made = lora.init(model, adapted.r, adapted.target_modules, seed=config.seed, mesh=mesh)
    return made, lora.shardings(model.arch, adapted.r, adapted.target_modules, mesh)


def export(folder: pathlib.Path, model: Any, params: Any, tokenizer: Any, source: pathlib.Path) -> None:
    """The run's Hugging Face folder, unless it is there already (it appears whole or not at all)."""
    if folder.exists():
        return
    for left in folder.parent.glob(f".{folder.name}.*"):  # of an export that was killed
        shutil.rmtree(left)
    models.save_pretrained(folder, model, params, tokenizer=tokenizer, source=source)
    say(f"exported to {folder}")
