"""The updates of a run: one compiled step, dispatched one ahead of what is fetched and recorded."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from care_jax import models
from care_jax.config import Config, steps_of
from care_jax.data import pipeline
from care_jax.data.packing.plans import Batch
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.stopping import Interrupted, StopSignal
from care_jax.training import placing
from care_jax.training.checks import before_start
from care_jax.training.checks.alarms import Alarms, mean_chosen_tokens
from care_jax.training.checks.nonfinite import Diagnosis, Finding
from care_jax.training.data import Prepared
from care_jax.training.errors import Diverged, RunFailed
from care_jax.training.evaluation.schedule import Evaluations
from care_jax.training.forward.reference import Reference
from care_jax.training.objective import LOG_RATIO, Objective
from care_jax.training.run.checkpoints import Checkpoints
from care_jax.training.run.metrics import Recorder
from care_jax.training.run.profile import Trace
from care_jax.training.state import Built, train_program
from care_jax.training.step import State

_SHOWN = 8  # questions of a step that a message names


@dataclasses.dataclass(frozen=True)
class PendingStep:
    """A step that was dispatched and not recorded yet."""

    number: int
    metrics: dict[str, jax.Array]
    told: dict[str, Any]
    dispatched: float
    chosen_tokens: float
    batch: Batch


class Updates:
    """Takes a state from the step it was saved at to the last one.

    meta: what a checkpoint says of the run beside the state.
    """

    def __init__(
        self,
        config: Config,
        folder: pathlib.Path,
        objective: Objective,
        mesh: jax.sharding.Mesh,
        stop: StopSignal,
        checkpoints: Checkpoints,
        built: Built,
        data: Prepared,
        reference: Reference,
        recorder: Recorder,
        evaluations: Evaluations,
        meta: dict[str, Any],
    ):
        self._config, self._folder, self._objective, self._mesh = config, folder, objective, mesh
        self._stop, self._checkpoints, self._built, self._data = stop, checkpoints, built, data
        self._reference, self._recorder, self._evaluations, self._meta = reference, recorder, evaluations, meta
        self._alarms, self._diagnosis = Alarms(), Diagnosis(built.model, objective)
        self._flight: PendingStep | None = None
        self._parameters = models.num_params(built.model.arch)
        self._trace = Trace(config.profile, folder / "profile", data.steps)

    def run(self, state: State, shardings: State, start: int | None) -> State:
        """Raises Interrupted after a signal (the state is saved), Diverged, and RunFailed where the machine fails."""
        with self._trace:
            return self._run(state, shardings, start)

    def _run(self, state: State, shardings: State, start: int | None) -> State:
        config, total = self._config, self._data.steps
        rows = placing.own_rows(self._mesh, config.batch.microbatch_rows)
        batches = self._batches((start or 0) + 1, rows)
        number, host_batch, told = next(batches)
        batch_shardings = placing.batch_shardings(host_batch, self._mesh)
        batch = self._place(host_batch, batch_shardings)
        compiled = self._compile(state, batch, shardings, batch_shardings)
        if start is None:
            self._evaluations.run(0, state)

        every = None if config.checkpoint.every is None else steps_of(config.checkpoint.every, total)
        saved_at = time.monotonic()
        self._recorder.start_clock()
        while True:
            self._trace.start_if_due(number)
            dispatched, tokens = time.perf_counter(), mean_chosen_tokens(self._objective.view, host_batch)
            state, metrics = compiled(state, batch)
            self._settle(state)
            self._flight = PendingStep(number, metrics, told, dispatched, tokens, batch)
            if self._trace.is_last(number):
                self._settle(state)
                self._trace.stop()
            self._checkpoints.poll()

            minutes = config.checkpoint.minutes
            clock = self._stop.poll(minutes is not None and time.monotonic() - saved_at >= 60 * minutes)
            evaluating = self._evaluations.due(number)
            last = number == total
            saving = last or clock or self._stop.requested or (every is not None and number % every == 0)
            done = number
            if not last:
                waiting = time.perf_counter()
                number, host_batch, told = next(batches)
                self._recorder.record_input_wait(time.perf_counter() - waiting)
                batch = self._place(host_batch, batch_shardings)
            if evaluating or saving:
                self._settle(state)
            if evaluating:
                try:
                    self._evaluations.run(done, state)
                except Interrupted:
                    saving = True  # the evaluation is made up for by the next start
            if saving:
                self._recorder.sync()  # metrics up to this step are on disk before the checkpoint commits
                self._checkpoints.save(done, state, self._meta, self._evaluations.of(done))
                saved_at = time.monotonic()
            if self._stop.requested:
                self._end_early(done)
            if last:
                return state

    def _batches(self, number: int, rows: slice) -> Iterator[tuple[int, Batch, dict[str, Any]]]:
        """From step `number` on; a thread that dies making one ends the run with the step that it was for."""
        made = self._data.batches(number - 1, rows)
        while True:
            try:
                found = next(made)
            except StopIteration:
                return
            except (UserError, OSError):  # told of by themselves
                raise
            except Exception as error:
                raise RunFailed(
                    f"the batch of step {number} could not be made: {type(error).__name__}: {error}; "
                    f"{self._checkpoints.resume_hint()}"
                ) from error
            number = found[0] + 1
            yield found

    def _compile(self, state: State, batch: Batch, shardings: State, batch_shardings: Batch) -> Any:
        """One program for the whole run; everything static comes from the data's plan."""
        built = self._built
        jitted = train_program(
            self._config, self._objective, built.model, built.optimizer, (shardings, batch_shardings)
        )
        began = time.perf_counter()
        compiled = jitted.lower(state, batch).compile()
        seconds = time.perf_counter() - began
        self._recorder.record_compilation(seconds)
        say(f"train step compiled in {seconds:.1f} s")
        return compiled

    def _place(self, host_batch: Batch, shardings: Batch) -> Batch:
        placed = placing.to_devices(host_batch, shardings, self._config.batch.microbatch_rows)
        return self._reference.into(placed)

    def _settle(self, state: State) -> None:
        """Fetches and records the step in flight; the next one has been dispatched already."""
        if self._flight is None:
            return
        flight, self._flight = self._flight, None
        jax.block_until_ready(flight.metrics)
        # The one before was under way when it was dispatched, as another may be when a signal comes.
        self._stop.estimate_stop(time.perf_counter() - flight.dispatched, self._checkpoints.last_save_seconds)
        values = {name: np.asarray(value).item() for name, value in jax.device_get(flight.metrics).items()}
        skipped = int(values.pop("skipped"))
        log_ratio = values.pop(LOG_RATIO, 0.0)
        values["learning_rate"] = float(self._built.schedule(flight.number - 1))
        self._recorder.record_step(flight.number, values, flight.told, self._flops(flight.told), flight.dispatched)
        if skipped:
            self._not_finite(flight, values, skipped, state)
        elif flight.number == 1 and self._reference.needed and self._reference.own:
            before_start.check_first_step(values, log_ratio, self._config.model.dtype, self._objective, flight.batch)
        for text in self._alarms.check(flight.number, values, flight.chosen_tokens):
            say(text)

    def _flops(self, told: dict[str, Any]) -> float:
        """Of a step: 2 N a token and pass, N parameters, two passes back (with LoRA one: frozen weights have no
        gradient). What remat computes again is not counted.
        """
        passes = 2 if self._config.model.lora else 3
        without = told.get("mismatched_tokens", 0)
        return 2.0 * self._parameters * (passes * (told["tokens"] - without) + without)

    def _not_finite(self, flight: PendingStep, values: dict[str, float], skipped: int, state: State) -> None:
        """Says which step, tensor and questions; raises Diverged where it was one too many in a row."""
        finding = self._diagnosis.first_nonfinite(state, flight.batch, values.get("kl", 0.0))
        questions, response = self._questions(flight.number, finding)
        shown = ", ".join(repr(one[:60]) for one in questions[:_SHOWN])
        more = f" and {len(questions) - _SHOWN} more" if len(questions) > _SHOWN else ""
        text = (
            f"step {flight.number}: loss or gradient not finite, update skipped ({skipped} in a row). First non-finite "
            f"tensor: {finding.tensor}{'' if response is None else f', in {response[:60]!r}'}. "
            f"Questions of the step: {shown}{more}"
        )
        say(text)
        if is_writer():
            line = {"step": flight.number, "tensor": finding.tensor, "in": response, "questions": questions}
            with (self._folder / "nonfinite.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if skipped >= self._config.nonfinite.max_consecutive:
            with contextlib.suppress(RunFailed):  # said already; this run ends for another reason
                self._checkpoints.wait()
            raise Diverged(
                f"step {flight.number}: {skipped} updates in a row were not finite (nonfinite.max_consecutive); first "
                f"non-finite tensor: {finding.tensor}; {self._checkpoints.resume_hint()}"
            )

    def _questions(self, number: int, finding: Finding) -> tuple[list[str], str | None]:
        """Keys of a step's questions, that of the finding first, and the finding's own."""
        data = self._data
        units = pipeline.step_units(data.stream, number - 1, data.examples)
        keys = list(dict.fromkeys(data.corpus.key(unit.question) for unit in units))
        if finding.place is None:
            return keys, None
        plan = pipeline.plan_step(units, data.corpus, data.layout, data.mismatched)
        at = np.flatnonzero((plan.microbatch == finding.place[0]) & (plan.slot == finding.place[1]))
        guilty = data.corpus.key(int(plan.sequences[at[0], 0]))
        return [guilty, *(key for key in keys if key != guilty)], guilty

    def _end_early(self, number: int) -> None:
        """Raises Interrupted once the state is saved."""
        seconds = self._checkpoints.last_save_seconds
        say(f"stopping behind step {number}: saving" + (f", {seconds:.0f} s the last time" if seconds else ""))
        self._checkpoints.wait()
        self._recorder.close()
        heard = self._stop.received_at
        took = "" if heard is None else f" {time.monotonic() - heard:.0f} s after the signal"
        raise Interrupted(
            f"stopped at step {number} of {self._data.steps}{took}; saved: the same command goes on from there"
        )
