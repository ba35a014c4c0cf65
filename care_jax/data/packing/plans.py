"""The plan of one step: which microbatch, row and slot each unit gets.

A plan depends on lengths only. So every host makes the same one and fills (`fill.fill`) only the rows that it owns.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from care_jax.data.corpus import Corpus, SequenceId
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.bins import Bin, Cluster
from care_jax.data.packing.clusters import (
    cluster_places,
    clusters_of,
    indivisible_parts,
    join_questions,
    pack_clusters,
    sequence_lengths,
)
from care_jax.data.packing.positions import Pairs, Responses, Segments, lay_out
from care_jax.data.preferences import Unit
from care_jax.errors import UserError

_WINDOW = 4096  # sequences packed at once by `plan_responses`; the time of best fit is quadratic in their number


class ResponseList(NamedTuple):
    """A unit of the view `lists`. slots: those of its responses in the microbatch."""

    microbatch: int
    slots: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class StepPlan:
    """Where everything in a step is placed. count: microbatches that are not empty."""

    shape: BatchShape
    count: int
    responses: Responses
    segments: Segments
    pairs: Pairs
    lists: tuple[ResponseList, ...] = ()
    mismatched: "StepPlan | None" = None

    @property
    def tokens(self) -> int:
        """Token slots that are filled."""
        return int(self.segments.length.sum())

    @property
    def efficiency(self) -> float:
        """The fraction of the token slots of non-empty microbatches that is filled."""
        return self.tokens / max(1, self.count * self.shape.rows * self.shape.row_length)


# --- the plan of units -----------------------------------------------------------------------------------------------


def plan_step(
    units: Sequence[Unit], corpus: Corpus, shape: BatchShape, mismatched: BatchShape | None = None
) -> StepPlan:
    """Lays out the units of one step in the fewest microbatches found.

    A unit with shared responses, a pair without, or a labelled response is never divided over microbatches. Those of
    one question stay together if they fit. mismatched: the shape of KTO's mismatched completions, if they are needed.
    Raises UserError with the question that needs more rows than a microbatch has, and the rows it needs.
    """
    parts, merge, bins = _pack_units(units, corpus, shape)
    places = cluster_places(bins, merge)
    final_slots, responses, segments = _lay_out(bins, shape)
    offsets = [0, *itertools.accumulate(len(bin_.placed) for bin_ in bins)]
    pairs: list[tuple[int, int, int]] = []
    pair_weights: list[float] = []
    lists: list[ResponseList] = []
    for part, place in zip(parts, places):
        slots = [final_slots[place.microbatch][slot] for slot in place.slots]
        if part.desirable is not None:
            index = offsets[place.microbatch] + slots[0]
            responses.weight[index], responses.desirable[index] = part.weight, part.desirable
        elif part.pairs:
            pairs += [(place.microbatch, slots[chosen], slots[rejected]) for chosen, rejected in part.pairs]
            pair_weights += part.weights
        else:
            lists.append(ResponseList(place.microbatch, tuple(slots), part.weight))
    other = None if mismatched is None else plan_responses(corpus, mismatched_sequences(units, corpus), mismatched)
    return StepPlan(shape, len(bins), responses, segments, Pairs.of(pairs, pair_weights), tuple(lists), other)


def count_microbatches(units: Sequence[Unit], corpus: Corpus, shape: BatchShape, known: int) -> int:
    """The microbatches that `plan_step` needs for these units, or `known` if that is more."""
    return max(known, len(_pack_units(units, corpus, shape, max(1, known))[2]))


def _pack_units(
    units: Sequence[Unit], corpus: Corpus, shape: BatchShape, enough: int = 1
) -> tuple[list[Unit], bool, list[Bin]]:
    """Returns the indivisible parts, whether several parts use one copy of a response, and the microbatches."""
    parts = indivisible_parts(units, shape)
    # Two labelled units with the same response are two examples, so each has its own copy.
    merge = shape.share_responses and not any(unit.desirable is not None for unit in units)
    clusters = join_questions(clusters_of(parts, corpus), merge)
    return parts, merge, pack_clusters(clusters, shape, merge, corpus, enough)


# --- the plan of single responses ------------------------------------------------------------------------------------


def plan_responses(corpus: Corpus, sequences: Sequence[SequenceId], shape: BatchShape) -> StepPlan:
    """Lays out single responses as in training rows, each as a labelled unit of weight 1.

    `plan.responses` has the order of `sequences`; its microbatch and slot say where the logps of each will be.
    """
    bins = _pack_responses(corpus, sequences, shape)
    final_slots, responses, segments = _lay_out(bins, shape)
    offsets = [0, *itertools.accumulate(len(bin_.placed) for bin_ in bins)]
    order = [
        offsets[place.microbatch] + final_slots[place.microbatch][place.slots[0]]
        for place in cluster_places(bins, merge=False)
    ]
    responses.weight[:] = 1
    return StepPlan(shape, len(bins), responses[np.asarray(order, np.int64)], segments, Pairs.of([], []))


def mismatched_sequences(units: Sequence[Unit], corpus: Corpus) -> list[SequenceId]:
    """For each unit its question with the response of the nearest earlier unit (cyclic) that has another question key.

    Raises UserError if the units have fewer than two question keys.
    """
    keys = [corpus.key(unit.question) for unit in units]
    if len(set(keys)) < 2:
        raise UserError(
            f"batch.examples: the KL estimate needs two different questions in every step, but one of {len(units)} "
            f"units has {len(set(keys))}"
        )
    sequences: list[SequenceId] = []
    for index, unit in enumerate(units):
        distance = next(n for n in range(1, len(units)) if keys[index - n] != keys[index])
        other = units[index - distance]
        sequences.append((unit.question, corpus.response_id(other.question, other.responses[0])))
    return sequences


def count_mismatched(units: Sequence[Unit], corpus: Corpus, shape: BatchShape) -> int:
    """The microbatches that the mismatched completions of these units need."""
    return len(_pack_responses(corpus, mismatched_sequences(units, corpus), shape))


def _pack_responses(corpus: Corpus, sequences: Sequence[SequenceId], shape: BatchShape) -> list[Bin]:
    questions = [int(question) for question, _ in sequences]
    ids = [[int(response)] for _, response in sequences]
    prompts, lengths = sequence_lengths(corpus, questions, ids)
    clusters = [
        Cluster(question, prompts[index], ids[index], lengths[index], index=index)
        for index, question in enumerate(questions)
    ]
    bins: list[Bin] = []
    for start in range(0, len(clusters), _WINDOW):
        window = join_questions(clusters[start : start + _WINDOW], merge=False)
        bins += pack_clusters(window, shape, False, corpus)
    return bins


def _lay_out(bins: Sequence[Bin], shape: BatchShape) -> tuple[list[list[int]], Responses, Segments]:
    return lay_out(bins, shape.row_length, shape.share_prompts and shape.packing)
