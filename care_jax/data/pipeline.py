"""The stream of units and the steps made of it: which units step n holds is a function of (seed, n) alone."""

import dataclasses
import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import grain

from care_jax.data.corpus import Corpus, concatenate, tokenize
from care_jax.data.packing.batch import Batch, BatchShape
from care_jax.data.packing.capacities import batch_shape, mismatched_shape
from care_jax.data.packing.fill import RefLogps, fill
from care_jax.data.packing.plans import (
    StepPlan,
    count_microbatches,
    count_mismatched,
    mismatched_sequences,
    plan_responses,
    plan_step,
)
from care_jax.data.preferences import Unit, make_units, stable_hash
from care_jax.data.questions import Question
from care_jax.errors import UserError

__all__ = [
    "Batch",
    "BatchShape",
    "Corpus",
    "StepPlan",
    "batch_shape",
    "concatenate",
    "fill",
    "mismatched_shape",
    "mixture",
    "needed_sequences",
    "number_of_steps",
    "plan_responses",
    "plan_run",
    "plan_step",
    "step_units",
    "steps",
    "tokenize",
    "units",
]  # fmt: skip

_GRAIN_SEEDS = 2**32
_THREADS, _PREFETCH = 2, 4  # of the host, while a step runs on the devices; batches made ahead


class _Mixture(grain.MapDataset):
    """Several sources one after the other, each with its part of an epoch; behind it comes the next epoch.

    A seed (of a source, of the whole) shuffles every epoch by grain's permutation, as `MapDataset.shuffle` does: a step
    looks up a hundred units and more, and one look-up through datasets in layers takes ten times as long.
    """

    def __init__(self, sources: Sequence[tuple[Sequence[Unit], int, int | None]], seed: int | None):
        super().__init__()
        self._sources, self._seed = list(sources), seed
        self._ends = list(itertools.accumulate(count for _, count, _ in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(_shuffled(int(index), len(self), self._seed), len(self))
        number = bisect_right(self._ends, place)
        items, count, seed = self._sources[number]
        return items[_shuffled(epoch * count + place - (self._ends[number] - count), len(items), seed) % len(items)]


def _shuffled(index: int, length: int, seed: int | None) -> int:
    """Where position `index` of the epochs comes from, in the same epoch."""
    if seed is None:
        return index
    epoch, place = divmod(index, length)
    own = (seed + epoch) % _GRAIN_SEEDS
    return epoch * length + grain.experimental.index_shuffle(place, max_index=length - 1, seed=own, rounds=4)


def mixture(
    sources: Sequence[tuple[Sequence[Unit], int | float]], *, seed: int = 0, shuffle: bool = True
) -> "grain.MapDataset[Unit]":
    """One epoch of several sources of units, each with its weight: the passes through it an epoch (0.5: half of it,
    the other half the next time). Shuffled, every epoch is grain's own permutation; else the order is the sources'.
    An index behind the end goes on with the next epoch, without end.
    """
    parts = []
    for number, (own, weight) in enumerate(sources):
        if weight <= 0:
            raise UserError(f"data.train[{number}].weight: expected a number above 0, found {weight}")
        if not len(own):
            raise UserError(f"data.train[{number}]: no unit is left: every question was filtered away or has no pair")
        # Else a part of a pass would be the beginning of a file, which is seldom in random order.
        shuffled = stable_hash(seed, "source", number) % _GRAIN_SEEDS if shuffle and weight != int(weight) else None
        parts.append((own, max(1, math.floor(weight * len(own) + 0.5)), shuffled))
    return _Mixture(parts, seed % _GRAIN_SEEDS if shuffle else None)


def units(
    questions: Sequence[Question] | Corpus, *, view: str = "pairs", seed: int = 0, shuffle: bool = True, **options: Any
) -> "grain.MapDataset[Unit]":
    """The units of some questions (or of a corpus) for a loss of this view, as an endless stream of shuffled epochs.

    options: of `preferences.make_units` (policy, min_gap, max_per_question, weights, unit, reduction, labels,
    desirable_min, undesirable_max). `Unit.question` indexes `questions`. Any MapDataset of units may stand in its
    place.
    """
    asked = questions.questions if isinstance(questions, Corpus) else questions
    made = make_units(asked, view, seed=seed, **options)
    return mixture([(made, 1.0)], seed=seed, shuffle=shuffle)


def number_of_steps(
    stream: "grain.MapDataset[Unit]", examples: int, epochs: int | float | None, max_steps: int | None
) -> int:
    """Updates of a run: those of its epochs (the last is filled up from the next), at most max_steps."""
    if epochs is None and max_steps is None:
        raise UserError("data.epochs: null needs data.max_steps")
    whole = math.inf if epochs is None else math.ceil(epochs * len(stream) / examples - 1e-9)
    return int(min(whole, math.inf if max_steps is None else max_steps))


def step_units(stream: "grain.MapDataset[Unit]", step: int, examples: int) -> list[Unit]:
    """The units of step n (from 0): positions [n examples, (n + 1) examples) of the epochs in turn."""
    if len(stream) == 0:
        raise UserError("no unit is left to train on: every question was filtered away or has no pair")
    return [stream[position] for position in range(step * examples, (step + 1) * examples)]


def plan_run(
    stream: "grain.MapDataset[Unit]",
    corpus: Corpus,
    layout: BatchShape,
    examples: int,
    total: int,
    mismatched: BatchShape | None = None,
) -> tuple[BatchShape, BatchShape | None]:
    """The layouts with `microbatches` set to what the fullest of the steps to be run needs."""
    most, most_mismatched = 0, 0
    for step in range(total):
        own = step_units(stream, step, examples)
        most = count_microbatches(own, corpus, layout, most)
        if mismatched is not None:
            most_mismatched = max(most_mismatched, count_mismatched(own, corpus, mismatched))
    sized = dataclasses.replace(layout, microbatches=most)
    return sized, None if mismatched is None else dataclasses.replace(mismatched, microbatches=most_mismatched)


def needed_sequences(
    stream: "grain.MapDataset[Unit]", corpus: Corpus, examples: int, total: int, mismatched: bool = False
) -> list[tuple[int, int]]:
    """Every distinct (question, response id) that the steps to be run need, KTO's mismatched completions included,
    in the order of the corpus.
    """
    found: set[tuple[int, int]] = set()
    seen: set[Unit] = set()
    for step in range(total):
        own = step_units(stream, step, examples)
        if mismatched:
            found.update(mismatched_sequences(own, corpus))
        for unit in own:
            if unit not in seen:
                seen.add(unit)
                found.update((unit.question, corpus.response_id(unit.question, r)) for r in unit.responses)
    return sorted(found)


def steps(
    stream: "grain.MapDataset[Unit]",
    corpus: Corpus,
    layout: BatchShape,
    examples: int,
    start: int,
    stop: int,
    *,
    mismatched: BatchShape | None = None,
    rows: slice | None = None,
    ref_logps: RefLogps | None = None,
) -> "grain.IterDataset[tuple[int, Batch, StepPlan]]":
    """(n, batch, plan) for every step n in [start, stop), counted from 0, as numpy arrays, made ahead by threads.

    rows: those of every microbatch that this process owns. A batch is a function of n alone, whatever the threads.
    """

    def make(step: int) -> tuple[int, Batch, StepPlan]:
        plan = plan_step(step_units(stream, int(step), examples), corpus, layout, mismatched)
        return int(step), fill(plan, corpus, rows, ref_logps), plan

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCH)
    return grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options)
