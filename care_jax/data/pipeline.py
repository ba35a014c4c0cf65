"""The stream of units and the steps made of it, both counted from 0. A step's units depend on seed and index."""

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
    "plan_step", "set_microbatches", "step_units", "steps", "tokenize", "units",
]  # fmt: skip

_GRAIN_SEEDS = 2**32
_THREADS, _PREFETCH = 2, 4  # threads that make batches, and batches made ahead of the step that runs


# --- the stream ------------------------------------------------------------------------------------------------------


def units(
    questions: Sequence[Question] | Corpus, *, view: str = "pairs", seed: int = 0, shuffle: bool = True, **options: Any
) -> "grain.MapDataset[Unit]":
    """Returns the units of questions, for a loss of this view, as an endless stream of shuffled epochs.

    questions: a list, or a corpus, whose questions are used; `Unit.question` is an index into them. options: options of
    `preferences.make_units` (policy, min_gap, max_per_question, weights, unit, reduction, labels, desirable_min,
    undesirable_max). A run also accepts any other MapDataset of units.
    """
    if isinstance(questions, Corpus):
        questions = questions.questions
    return mixture([(make_units(questions, view, seed=seed, **options), 1.0)], seed=seed, shuffle=shuffle)


def mixture(
    sources: Sequence[tuple[Sequence[Unit], int | float]], *, seed: int = 0, shuffle: bool = True
) -> "grain.MapDataset[Unit]":
    """Returns several sources of units as one endless stream. Its length is that of an epoch.

    sources: (units, weight). weight: passes through the source per epoch; with 0.5, an epoch has one half of the units
    and the next epoch the other half. shuffle: grain permutes each epoch; if false, one source comes after the other.
    """
    parts = []
    for number, (source, weight) in enumerate(sources):
        if weight <= 0:
            raise UserError(f"data.train.{number}.weight: expected a number above 0, found {weight}")
        if not len(source):
            raise UserError(f"data.train.{number}: no unit is left: every question was filtered away or gives no unit")
        # Without its own shuffle, a part of a pass would be the beginning of a file, which is seldom a fair sample.
        source_seed = stable_hash(seed, "source", number) % _GRAIN_SEEDS if shuffle and weight != int(weight) else None
        parts.append((source, max(1, math.floor(weight * len(source) + 0.5)), source_seed))
    return _Mixture(parts, seed % _GRAIN_SEEDS if shuffle else None)


class _Mixture(grain.MapDataset):
    """The dataset that `mixture` returns. sources: (units, units per epoch, seed) of each.

    A seed, of a source or of the mixture, shuffles each epoch as grain's `MapDataset.shuffle` does; None keeps the
    order. Nested grain datasets would give the same units, ten times as slowly, and a step looks up hundreds.
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
        epoch, position_in_epoch = divmod(_unshuffled_index(int(index), len(self), self._seed), len(self))
        source_index = bisect_right(self._ends, position_in_epoch)
        source, units_per_epoch, seed = self._sources[source_index]
        # In the stream of the source, whose epochs are passes through all its units.
        position = epoch * units_per_epoch + position_in_epoch - (self._ends[source_index] - units_per_epoch)
        return source[_unshuffled_index(position, len(source), seed) % len(source)]


def _unshuffled_index(index: int, length: int, seed: int | None) -> int:
    """Returns where the item at `index` of a shuffled stream is in the unshuffled one. Items stay in their epoch."""
    if seed is None:
        return index
    epoch, position = divmod(index, length)
    seed = (seed + epoch) % _GRAIN_SEEDS
    return epoch * length + grain.experimental.index_shuffle(position, max_index=length - 1, seed=seed, rounds=4)


# --- the steps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepSource:
    """What steps are made from. examples: units per step. mismatched_shape: KTO's; None for a loss without `kl`."""

    stream: "grain.MapDataset[Unit]"
    corpus: Corpus
    examples: int
    shape: BatchShape
    mismatched_shape: BatchShape | None = None

    def units(self, step_index: int) -> list[Unit]:
        """Returns the units of a step, counted from 0."""
        return step_units(self.stream, step_index, self.examples)

    def plan(self, step_index: int) -> StepPlan:
        """Returns the plan of a step, counted from 0."""
        return plan_step(self.units(step_index), self.corpus, self.shape, self.mismatched_shape)


def number_of_steps(
    stream: "grain.MapDataset[Unit]", examples: int, epochs: int | float | None, max_steps: int | None
) -> int:
    """Returns the number of steps of these epochs, at most max_steps. The next epoch fills up the last step."""
    if epochs is None and max_steps is None:
        raise UserError("data.epochs: null needs data.max_steps")
    of_epochs = math.inf if epochs is None else math.ceil(epochs * len(stream) / examples - 1e-9)
    return int(min(of_epochs, math.inf if max_steps is None else max_steps))


def step_units(stream: "grain.MapDataset[Unit]", step_index: int, examples: int) -> list[Unit]:
    """Returns the units of a step, counted from 0: the next `examples` of the stream after those of earlier steps."""
    if len(stream) == 0:
        raise UserError("no unit is left to train on: every question was filtered away or gives no unit")
    return [stream[position] for position in range(step_index * examples, (step_index + 1) * examples)]


def set_microbatches(source: StepSource, steps: int) -> StepSource:
    """Returns the source with `microbatches` of its shapes set to what the fullest of the first `steps` steps needs."""
    most, most_mismatched = 0, 0
    mismatched = source.mismatched_shape
    for step_index in range(steps):
        units_of_step = source.units(step_index)
        most = count_microbatches(units_of_step, source.corpus, source.shape, most)
        if mismatched is not None:
            most_mismatched = max(most_mismatched, count_mismatched(units_of_step, source.corpus, mismatched))
    mismatched = mismatched and dataclasses.replace(mismatched, microbatches=most_mismatched)
    shape = dataclasses.replace(source.shape, microbatches=most)
    return dataclasses.replace(source, shape=shape, mismatched_shape=mismatched)


def needed_sequences(source: StepSource, steps: int) -> list[SequenceId]:
    """Returns the distinct sequences of the first `steps` steps, mismatched ones too, in the order of the corpus."""
    sequences: set[SequenceId] = set()
    seen: set[Unit] = set()
    for step_index in range(steps):
        units_of_step = source.units(step_index)
        if source.mismatched_shape is not None:
            sequences.update(mismatched_sequences(units_of_step, source.corpus))
        for unit in units_of_step:
            if unit not in seen:
                seen.add(unit)
                sequences.update((unit.question, source.corpus.response_id(unit.question, r)) for r in unit.responses)
    return sorted(sequences)


def steps(
    source: StepSource, start: int, stop: int, *, rows: slice | None = None, ref_logps: RefLogps | None = None
) -> "grain.IterDataset[tuple[int, Batch, StepPlan]]":
    """Returns a dataset of (step index, batch, plan) for the steps from start to stop - 1, counted from 0.

    Threads make batches ahead. A batch holds numpy arrays, and depends on the source and the step index alone. rows:
    the rows of each microbatch that this process fills; None is all. ref_logps: as in `fill`.
    """

    def make(step_index: int) -> tuple[int, Batch, StepPlan]:
        plan = source.plan(int(step_index))
        return int(step_index), fill(plan, source.corpus, rows, ref_logps), plan

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCH)
    return grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options)
