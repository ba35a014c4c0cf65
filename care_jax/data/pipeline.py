"""The stream of units and the steps made of it. The units of step n depend on (seed, n) alone."""

import dataclasses
import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grain

from care_jax.data.corpus import Corpus, SequenceId, concatenate, tokenize
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
    "Batch", "BatchShape", "Corpus", "StepPlan", "StepSource", "batch_shape", "concatenate", "fill",
    "mismatched_sequences", "mismatched_shape", "mixture", "needed_sequences", "number_of_steps", "plan_responses",
    "plan_run", "plan_step", "step_units", "steps", "tokenize", "units",
]  # fmt: skip

_GRAIN_SEEDS = 2**32
_THREADS, _PREFETCH = 2, 4  # threads that make batches, and batches made ahead of the step that runs


# --- the stream ------------------------------------------------------------------------------------------------------


def units(
    questions: Sequence[Question] | Corpus, *, view: str = "pairs", seed: int = 0, shuffle: bool = True, **options: Any
) -> "grain.MapDataset[Unit]":
    """The units of some questions for a loss of this view, as an endless stream of shuffled epochs.

    options: of `preferences.make_units` (policy, min_gap, max_per_question, weights, unit, reduction, labels,
    desirable_min, undesirable_max). `Unit.question` is an index into `questions`, or into those of the corpus. Any
    MapDataset of units may be used in place of this one.
    """
    listed = questions.questions if isinstance(questions, Corpus) else questions
    return mixture([(make_units(listed, view, seed=seed, **options), 1.0)], seed=seed, shuffle=shuffle)


def mixture(
    sources: Sequence[tuple[Sequence[Unit], int | float]], *, seed: int = 0, shuffle: bool = True
) -> "grain.MapDataset[Unit]":
    """Several sources of units as one dataset, which has the length of an epoch and continues after it without end.

    sources: (units, weight); the weight is the passes through the source per epoch. 0.5 is one half of it, and the
    other half in the next epoch. With shuffle each epoch is grain's permutation; without, sources follow each other.
    """
    parts = []
    for number, (source, weight) in enumerate(sources):
        if weight <= 0:
            raise UserError(f"data.train[{number}].weight: expected a number above 0, found {weight}")
        if not len(source):
            raise UserError(f"data.train[{number}]: no unit is left: every question was filtered away or has no pair")
        # Without its own shuffle, a part of a pass would be the beginning of a file, which is seldom a fair sample.
        source_seed = stable_hash(seed, "source", number) % _GRAIN_SEEDS if shuffle and weight != int(weight) else None
        parts.append((source, max(1, math.floor(weight * len(source) + 0.5)), source_seed))
    return _Mixture(parts, seed % _GRAIN_SEEDS if shuffle else None)


class _Mixture(grain.MapDataset):
    """Several sources one after the other, each with its units per epoch and its seed.

    A seed (of a source, or of the mixture) shuffles each epoch by grain's permutation, as `MapDataset.shuffle` does.
    A step looks up a hundred units and more, and a look-up through nested datasets would take ten times as long.
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
        epoch, place = divmod(_shuffled_index(int(index), len(self), self._seed), len(self))
        number = bisect_right(self._ends, place)
        items, count, seed = self._sources[number]
        position = epoch * count + place - (self._ends[number] - count)
        return items[_shuffled_index(position, len(items), seed) % len(items)]


def _shuffled_index(index: int, length: int, seed: int | None) -> int:
    """The position in the unshuffled epochs of what is at `index`; both are in the same epoch."""
    if seed is None:
        return index
    epoch, place = divmod(index, length)
    seed = (seed + epoch) % _GRAIN_SEEDS
    return epoch * length + grain.experimental.index_shuffle(place, max_index=length - 1, seed=seed, rounds=4)


# --- the steps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepSource:
    """What the steps of a run are made from. examples: units per step.

    mismatched: the shape of KTO's mismatched completions, None for a loss without `kl`.
    """

    stream: "grain.MapDataset[Unit]"
    corpus: Corpus
    examples: int
    shape: BatchShape
    mismatched: BatchShape | None = None

    def units(self, step: int) -> list[Unit]:
        """The units of a step, counted from 0."""
        return step_units(self.stream, step, self.examples)

    def plan(self, step: int) -> StepPlan:
        """The plan of a step, counted from 0."""
        return plan_step(self.units(step), self.corpus, self.shape, self.mismatched)


def number_of_steps(
    stream: "grain.MapDataset[Unit]", examples: int, epochs: int | float | None, max_steps: int | None
) -> int:
    """The steps of a run: those of its epochs, at most max_steps. The next epoch fills up the last step."""
    if epochs is None and max_steps is None:
        raise UserError("data.epochs: null needs data.max_steps")
    of_epochs = math.inf if epochs is None else math.ceil(epochs * len(stream) / examples - 1e-9)
    return int(min(of_epochs, math.inf if max_steps is None else max_steps))


def step_units(stream: "grain.MapDataset[Unit]", step: int, examples: int) -> list[Unit]:
    """The units of step n (from 0): positions n * examples to (n + 1) * examples - 1 of the stream."""
    if len(stream) == 0:
        raise UserError("no unit is left to train on: every question was filtered away or has no pair")
    return [stream[position] for position in range(step * examples, (step + 1) * examples)]


def plan_run(source: StepSource, total: int) -> StepSource:
    """The source with `microbatches` of its shapes set to what the fullest of steps 0 to total - 1 needs."""
    most, most_mismatched = 0, 0
    for step in range(total):
        units_of_step = source.units(step)
        most = count_microbatches(units_of_step, source.corpus, source.shape, most)
        if source.mismatched is not None:
            most_mismatched = max(most_mismatched, count_mismatched(units_of_step, source.corpus, source.mismatched))
    mismatched = source.mismatched and dataclasses.replace(source.mismatched, microbatches=most_mismatched)
    shape = dataclasses.replace(source.shape, microbatches=most)
    return dataclasses.replace(source, shape=shape, mismatched=mismatched)


def needed_sequences(source: StepSource, total: int) -> list[SequenceId]:
    """All distinct sequences of steps 0 to total - 1, mismatched completions included, in the order of the corpus."""
    sequences: set[SequenceId] = set()
    seen: set[Unit] = set()
    for step in range(total):
        units_of_step = source.units(step)
        if source.mismatched is not None:
            sequences.update(mismatched_sequences(units_of_step, source.corpus))
        for unit in units_of_step:
            if unit not in seen:
                seen.add(unit)
                sequences.update((unit.question, source.corpus.response_id(unit.question, r)) for r in unit.responses)
    return sorted(sequences)


def steps(
    source: StepSource, start: int, stop: int, *, rows: slice | None = None, ref_logps: RefLogps | None = None
) -> "grain.IterDataset[tuple[int, Batch, StepPlan]]":
    """Yields (n, batch, plan) for each step n from start to stop - 1, counted from 0. Threads make batches ahead.

    rows: the rows of each microbatch that this process owns. A batch is numpy arrays and depends on n alone.
    """

    def make(step: int) -> tuple[int, Batch, StepPlan]:
        plan = source.plan(int(step))
        return int(step), fill(plan, source.corpus, rows, ref_logps), plan

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCH)
    return grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options)
