"""Passes without a gradient over any sequences: the reference's, the evaluation's; one program, compiled once."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from care_jax import sharding
from care_jax.data import pipeline
from care_jax.data.corpus import Corpus
from care_jax.data.packing import Batch, Layout, StepPlan
from care_jax.errors import UserError
from care_jax.sharding import is_writer
from care_jax.training import placing
from care_jax.training.datasets import Sequence_
from care_jax.training.reference import Cache, digest, fill_cache
from care_jax.training.signals import StopSignal
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
    """Lays sequences out in microbatches of the layout's rows and runs them; policy and reference go the same way.

    layout: sized for single responses, so that any sequences fit; one microbatch runs a call. rows: of a microbatch,
    those that this process fills.
    """

    def __init__(
        self, model: Any, corpus: Corpus, layout: Layout, mesh: jax.sharding.Mesh, rows: slice, stop: StopSignal
    ):
        check_ids(corpus, model.arch.vocab_size)
        self._corpus, self._mesh, self._rows, self._stop = corpus, mesh, rows, stop
        self._layout = dataclasses.replace(layout, microbatches=1)
        self._program = jax.jit(make_logps(model), out_shardings=sharding.replicated(mesh))
        self._plans: dict[tuple[Sequence_, ...], StepPlan] = {}

    def _plan(self, sequences: Sequence[Sequence_]) -> StepPlan:
        key = tuple(sequences)
        if key not in self._plans:
            self._plans[key] = pipeline.plan_responses(self._corpus, sequences, self._layout)
        return self._plans[key]

    def _dispatch(self, plan: StepPlan, number: int, variables: Any) -> jax.Array:
        """logps [S] of microbatch `number`, not waited for. Raises Interrupted where a signal asked to stop."""
        self._stop.check("in a pass without a gradient")
        local = pipeline.fill(plan, self._corpus, self._rows, microbatches=(number, number + 1))
        where = placing.batch_shardings(local, self._mesh)
        return self._program(variables, placing.to_devices(local, where, self._layout.rows))[0]

    @staticmethod
    def _members(plan: StepPlan) -> list[np.ndarray]:
        """The sequences of every microbatch, as positions."""
        order = np.argsort(plan.microbatch, kind="stable")
        return np.split(order, np.searchsorted(plan.microbatch[order], np.arange(1, plan.count)))

    def run(self, sequences: Sequence[Sequence_], variables: Any, name: str = "evaluation") -> np.ndarray:
        """logps [len(sequences)] float32."""
        plan = self._plan(sequences)
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

    def fill(self, cache: Cache, sequences: Sequence[Sequence_], variables: Any) -> int:
        """Runs what the cache lacks, in the layout of the whole; returns how many microbatches were run."""
        plan = self._plan(sequences)
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
        plan = self._plan(sequences)
        members = self._members(plan)[0]
        return members, np.asarray(self._dispatch(plan, 0, variables))[plan.slot[members]]

    def with_reference(self, batch: Batch, variables: Any) -> Batch:
        """The batch (on the devices) with reference logps computed on its own layout, for `reference.mode: online`."""
        other = None if batch.mismatched is None else self.with_reference(batch.mismatched, variables)
        ref_logps = self._program(variables, dataclasses.replace(batch, mismatched=None))
        return dataclasses.replace(batch, ref_logps=ref_logps, mismatched=other)


def _progress(items: Any, name: str) -> Any:
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(
        items, desc=name, unit="microbatch", leave=False, delay=2, mininterval=interval, disable=not is_writer()
    )
