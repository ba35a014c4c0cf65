"""Passes without a gradient over any sequences: the reference's, the evaluation's; one program, compiled once."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from care_jax import distributed, sharding
from care_jax.data import pipeline
from care_jax.data.corpus import Corpus
from care_jax.data.packing.plans import Batch, BatchShape, StepPlan
from care_jax.distributed import is_writer
from care_jax.errors import UserError
from care_jax.hardware import MEMORY_FRACTION
from care_jax.stopping import StopSignal
from care_jax.training import placing
from care_jax.training.data import Sequence_
from care_jax.training.errors import out_of_memory
from care_jax.training.forward.cache import ReferenceCache, digest, fill_cache
from care_jax.training.step import make_logps


def check_ids(corpus: Corpus, vocab_size: int) -> None:
    """UserError naming a question that holds an id which the model has no embedding of: a gather would take another's.

    Token caches are not read for it: their ids are a tokenizer's.
    """
    for part, tokens in (("prompt", corpus.prompts), ("completion", corpus.completions)):
        bad = np.flatnonzero((tokens.flat < 0) | (tokens.flat >= vocab_size))
        if not len(bad):
            continue
        inside = (tokens.starts <= bad[0]) & (bad[0] < tokens.starts + tokens.lengths)
        if tokens.places is not None:
            inside &= tokens.places[:, 0] < 0
        number = int(np.argmax(inside))
        question = number
        if part == "completion":
            question = int(np.searchsorted(corpus.first_response, number, side="right")) - 1
        about = corpus.questions[question]
        raise UserError(
            f"row {about.responses[0].row} ({corpus.key(question)!r:.60}): token id {int(tokens.flat[bad[0]])} in the "
            f"{part}; the model has 0 to {vocab_size - 1} (config.json: vocab_size)"
        )


class ForwardPass:
    """Lays sequences out in microbatches and runs them; policy and reference go the same way.

    layout: sized for single responses, so that any sequences fit; one microbatch runs a call. Without a gradient far
    more fits than in a training step: rows are 8, 4 or 2 times the layout's where the devices' memory has room for
    them (a backend that does not say how much it has, the CPU, keeps the layout's). beside: bytes of a device that are
    or will be taken beside the pass's own arguments.
    """

    def __init__(
        self,
        model: Any,
        corpus: Corpus,
        layout: BatchShape,
        mesh: jax.sharding.Mesh,
        stop: StopSignal,
        beside: int = 0,
    ):
        check_ids(corpus, model.arch.vocab_size)
        self._corpus, self._mesh, self._stop, self._beside = corpus, mesh, stop, beside
        self._layout = dataclasses.replace(layout, microbatches=1)
        self._program = jax.jit(make_logps(model), out_shardings=sharding.replicated(mesh))
        self._plans: dict[tuple[Sequence_, ...], StepPlan] = {}

    def _plan(self, sequences: Sequence[Sequence_], variables: Any) -> StepPlan:
        key = tuple(sequences)
        if key not in self._plans:
            if self._plans:
                plan = pipeline.plan_responses(self._corpus, sequences, self._layout)
            else:
                plan = self._first_plan(sequences, variables)
                self._layout = plan.layout
            self._plans[key] = plan
        return self._plans[key]

    def _first_plan(self, sequences: Sequence[Sequence_], variables: Any) -> StepPlan:
        """In the layout with the most rows that fit, of which the sequences fill more than half; it is kept."""
        limit = memory_limit()
        if limit is None:
            return pipeline.plan_responses(self._corpus, sequences, self._layout)
        for times in (8, 4, 2):
            layout = dataclasses.replace(
                self._layout,
                **{name: times * getattr(self._layout, name) for name in ("rows", "responses", "completions")},
            )
            plan = pipeline.plan_responses(self._corpus, sequences, layout)
            filled = plan.tokens > layout.rows * layout.row_length // 2
            if filled and not distributed.anywhere(not self._fits(plan, variables, limit - self._beside)):
                return plan
        return pipeline.plan_responses(self._corpus, sequences, self._layout)

    def _fits(self, plan: StepPlan, variables: Any, room: int) -> bool:
        """By what the compiler plans; the pass itself then runs the program that was compiled for this."""
        try:
            program = self._program.lower(variables, self._batch(plan, 0)).compile()
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        sizes = program.memory_analysis()
        if sizes is None:
            return False
        return sizes.argument_size_in_bytes + placing.bytes_beside_arguments(program) <= room

    def _batch(self, plan: StepPlan, number: int) -> Batch:
        """Microbatch `number` on the devices, of which every process fills its own rows."""
        rows = placing.own_rows(self._mesh, plan.layout.rows)
        local = pipeline.fill(plan, self._corpus, rows, microbatches=(number, number + 1))
        return placing.to_devices(local, placing.batch_shardings(local, self._mesh), plan.layout.rows)

    def _dispatch(self, plan: StepPlan, number: int, variables: Any) -> jax.Array:
        """logps [S] of microbatch `number`, not waited for. Raises Interrupted where a signal asked to stop."""
        self._stop.check("in a pass without a gradient")
        return self._program(variables, self._batch(plan, number))[0]

    @staticmethod
    def _members(plan: StepPlan) -> list[np.ndarray]:
        """The sequences of every microbatch, as positions."""
        order = np.argsort(plan.microbatch, kind="stable")
        return np.split(order, np.searchsorted(plan.microbatch[order], np.arange(1, plan.count)))

    def run(self, sequences: Sequence[Sequence_], variables: Any, name: str = "evaluation") -> np.ndarray:
        """logps [len(sequences)] float32."""
        plan = self._plan(sequences, variables)
        found = np.zeros(len(sequences), np.float32)
        for members, logps in self._ahead(plan, variables, name):
            found[members] = np.asarray(logps)[plan.slot[members]]
        return found

    def _ahead(self, plan: StepPlan, variables: Any, name: str) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """Every microbatch's members and logps, a few dispatched ahead of the one that is fetched."""
        waiting: list[tuple[np.ndarray, jax.Array]] = []
        for number, members in enumerate(_progress(self._members(plan), name)):
            waiting.append((members, self._dispatch(plan, number, variables)))
            if len(waiting) > 2:
                yield waiting.pop(0)
        yield from waiting

    def digests(self, sequences: Sequence[Sequence_]) -> list[bytes]:
        return [digest(*self._corpus.sequence(*one)) for one in sequences]

    def fill(self, cache: ReferenceCache, sequences: Sequence[Sequence_], variables: Any) -> int:
        """Runs what the cache lacks, in the layout of the whole; returns how many microbatches were run."""
        plan = self._plan(sequences, variables)
        members = self._members(plan)
        bar = _progress(range(len(members)), "reference")

        def run(number: int) -> tuple[jax.Array, np.ndarray]:
            return self._dispatch(plan, number, variables), plan.slot[members[number]]

        ran = fill_cache(
            cache, self.digests(sequences), [m.tolist() for m in members], run, write=is_writer(), progress=bar.update
        )
        bar.close()
        return ran

    def first_microbatch(self, sequences: Sequence[Sequence_], variables: Any) -> tuple[np.ndarray, np.ndarray]:
        """(positions in `sequences`, their logps) of the pass's first microbatch, run again."""
        plan = self._plan(sequences, variables)
        members = self._members(plan)[0]
        return members, np.asarray(self._dispatch(plan, 0, variables))[plan.slot[members]]

    def with_reference(self, batch: Batch, variables: Any) -> Batch:
        """The batch (on the devices) with reference logps computed on its own layout, for `reference.mode: online`."""
        other = None if batch.mismatched is None else self.with_reference(batch.mismatched, variables)
        ref_logps = self._program(variables, dataclasses.replace(batch, mismatched=None))
        return dataclasses.replace(batch, ref_logps=ref_logps, mismatched=other)


def memory_limit() -> int | None:
    """Bytes of a device's memory that are counted on; None where the backend does not say."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(MEMORY_FRACTION * limit)


def _progress(items: Any, name: str) -> Any:
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(
        items, desc=name, unit="microbatch", leave=False, delay=2, mininterval=interval, disable=not is_writer()
    )
