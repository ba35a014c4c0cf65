"""The static sizes of a run's batches, chosen from its units so that each step is compiled once."""

import dataclasses
import itertools
from collections.abc import Iterable

from care_jax.data.corpus import Corpus
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.plans import clusters_of, indivisible_parts, pack_clusters
from care_jax.data.preferences import Unit
from care_jax.errors import UserError

_CHUNK = 4096  # units looked at together


def batch_shape(units: Iterable[Unit], corpus: Corpus, shape: BatchShape, longest_completion: int = 0) -> BatchShape:
    """Sizes of a run's batches: a microbatch holds the largest unit, and more than an average microbatch needs.

    shape: its rows, row_length and configuration keys are kept, all else is chosen. Responses, pairs and lists cost
    little, so there is room for four times the average. Completion tokens cost a pass through the vocabulary: room for
    15 % more. longest_completion: tokens of the longest completion of other sequences that are laid out too
    (evaluation). Raises UserError for a unit that does not fit, with what it needs.
    """
    shape = shape.unlimited()
    row_length, packing = shape.row_length, shape.packing
    totals, largest = [0] * 5, [0] * 5  # tokens, completion tokens, responses, pairs, lists
    width = 1
    shortest = row_length
    remaining = iter(units)
    while chunk := list(itertools.islice(remaining, _CHUNK)):
        for cluster in clusters_of(indivisible_parts(chunk, shape), corpus):
            size, completion_tokens = cluster.size(shape), sum(cluster.lengths)
            if size > row_length or not packing:
                pack_clusters([cluster], shape, corpus)  # raises if it does not fit
            counts = size, completion_tokens, len(cluster.responses), cluster.pairs, cluster.lists
            totals = [total + count for total, count in zip(totals, counts)]
            largest = [max(most, count) for most, count in zip(largest, counts)]
            shortest = min(shortest, min(cluster.lengths))
            if cluster.lists:
                width = max(width, len(cluster.responses))
    if not totals[0]:
        raise UserError("no unit is left to train on: every question was filtered away or gives no unit")
    slots = shape.rows * row_length
    per_token = [total / totals[0] for total in totals]
    responses = shape.rows if not packing else min(slots // shortest, int(4 * per_token[2] * slots) + 16)
    completion_tokens = min(slots, max(largest[1], longest_completion, int(1.15 * per_token[1] * slots)))
    return dataclasses.replace(
        shape,
        responses=round_up(max(responses, largest[2]), 1 if not packing else 8),
        completion_tokens=min(slots, round_up(completion_tokens, 128)),
        pairs=round_up(max(1, largest[3], int(4 * per_token[3] * slots)), 8) if totals[3] else 1,
        lists=round_up(max(1, largest[4], int(4 * per_token[4] * slots)), 8) if totals[4] else 1,
        width=width,
        microbatches=0,
    )


def mismatched_shape(shape: BatchShape, corpus: Corpus) -> BatchShape:
    """The shape of KTO's mismatched completions: the same rows, for single responses of any two questions."""
    slots = shape.rows * shape.row_length
    return dataclasses.replace(
        shape,
        responses=shape.rows if not shape.packing else max(shape.responses, 8),
        completion_tokens=max(shape.completion_tokens, min(slots, corpus.max_length)),
        pairs=1,
        lists=1,
        width=1,
        microbatches=0,
    )


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is at least the value."""
    return -(-value // multiple) * multiple
