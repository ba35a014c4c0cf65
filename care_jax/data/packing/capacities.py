"""The static sizes of a run's batches, from its units: large enough for each, so that the step is compiled once."""

import dataclasses
import itertools
from collections.abc import Iterable

from care_jax.data.corpus import Corpus
from care_jax.data.packing.bins import Bin
from care_jax.data.packing.plans import BatchShape, atoms_of, refusal
from care_jax.data.preferences import Unit
from care_jax.errors import UserError

_CHUNK = 4096  # units looked at together


def make_layout(
    units: Iterable[Unit],
    corpus: Corpus,
    *,
    rows: int,
    row_length: int,
    packing: bool = True,
    share_responses: bool = True,
    share_prompts: bool = True,
    longest_completion: int = 0,
) -> BatchShape:
    """Sizes for a run over these units: room for the largest of them, and for what an average microbatch holds with
    plenty to spare where a size costs nothing (responses, pairs, lists), 15 % where it costs a pass through the
    vocabulary (completion tokens). longest_completion: of other sequences that will be laid out too (evaluation).
    Raises UserError for a unit that does not fit, with what it needs.
    """
    free = 2**60
    layout = BatchShape(rows, row_length, free, free, free, free, 1, 0, packing, share_responses, share_prompts)
    room = layout.room(True)
    totals, largest = [0] * 5, [0] * 5  # tokens, completion tokens, responses, pairs, lists
    width = 1
    smallest = row_length
    left = iter(units)
    while some := list(itertools.islice(left, _CHUNK)):
        for cluster, _ in atoms_of(some, corpus, layout):
            size, completions = cluster.size(room), sum(cluster.lengths)
            if (size > row_length or not packing) and Bin(room).fit(cluster, room) is None:
                raise UserError(refusal(cluster, layout, True, corpus))
            own = size, completions, len(cluster.names), cluster.pairs, cluster.groups
            totals = [total + value for total, value in zip(totals, own)]
            largest = [max(most, value) for most, value in zip(largest, own)]
            smallest = min(smallest, min(cluster.lengths))
            if cluster.groups:
                width = max(width, len(cluster.names))
    if not totals[0]:
        raise UserError("no unit is left to train on: every question was filtered away or has no pair")
    slots = rows * row_length
    share = [total / totals[0] for total in totals]
    most = rows if not packing else min(slots // smallest, int(4 * share[2] * slots) + 16)
    completions = min(slots, max(largest[1], longest_completion, int(1.15 * share[1] * slots)))
    return dataclasses.replace(
        layout,
        responses=round_up(max(most, largest[2]), 1 if not packing else 8),
        completions=min(slots, round_up(completions, 128)),
        pairs=round_up(max(1, largest[3], int(4 * share[3] * slots)), 8) if totals[3] else 1,
        groups=round_up(max(1, largest[4], int(4 * share[4] * slots)), 8) if totals[4] else 1,
        width=width,
    )


def mismatched_layout(layout: BatchShape, corpus: Corpus) -> BatchShape:
    """The layout of KTO's mismatched completions: the same rows, sized for single responses of any two questions."""
    slots = layout.rows * layout.row_length
    return dataclasses.replace(
        layout,
        responses=layout.rows if not layout.packing else max(layout.responses, 8),
        completions=max(layout.completions, min(slots, corpus.max_length)),
        pairs=1,
        groups=1,
        width=1,
        microbatches=0,
    )


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
