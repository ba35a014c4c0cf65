"""Rows, columns and slots by hand, and columns that are indexed together."""

import dataclasses

import numpy as np

from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.bins import Bin, Cluster
from care_jax.data.packing.positions import Pairs, lay_out

SHAPE = BatchShape(rows=2, row_length=10, responses=9, completion_tokens=99, pairs=9, lists=9, share_responses=False)


def packed():
    """Two questions in one microbatch; the second response of question 3 is packed after one of question 8."""
    bin_ = Bin(SHAPE)
    for cluster in (Cluster(3, 2, [5], [3]), Cluster(8, 1, [9], [7]), Cluster(3, 2, [6], [2])):
        assert bin_.add(cluster)
    return bin_


def test_a_shared_prompt_comes_once_before_its_responses():
    index_of, responses, segments = lay_out([packed()], SHAPE)
    assert (index_of.tolist(), responses.slot.tolist()) == ([0, 2, 1], [0, 1, 2])
    assert responses.response.tolist() == [5, 6, 9]
    assert segments.question.tolist() == [3, -1, -1, 8, -1]
    assert segments.response.tolist() == [-1, 5, 6, -1, 9]
    assert segments.row.tolist() == [0, 0, 0, 1, 1]
    assert segments.column.tolist() == [0, 2, 5, 0, 1]
    assert segments.length.tolist() == [2, 3, 2, 1, 7]
    assert segments.segment.tolist() == [1, 2, 3, 1, 2]
    assert segments.prompt_segment.tolist() == [1, 1, 1, 1, 1]
    assert segments.position.tolist() == [0, 2, 2, 0, 1]
    assert responses.start.tolist() == [2, 5, 11]
    assert responses.predictor.tolist() == [1, 1, 10]


def test_without_sharing_every_response_has_its_prompt():
    _, responses, segments = lay_out([packed()], dataclasses.replace(SHAPE, share_prompts=False))
    assert segments.question.tolist() == [3, -1, 3, -1, 8, -1]
    assert segments.column.tolist() == [0, 2, 5, 7, 0, 1]
    assert segments.segment.tolist() == [1, 1, 2, 2, 1, 1]
    assert responses.predictor.tolist() == [1, 6, 10]


def test_nothing_is_laid_out_as_empty_columns():
    index_of, responses, segments = lay_out([], SHAPE)
    assert (len(index_of), len(responses), len(segments)) == (0, 0, 0)


def test_an_index_selects_entries_of_every_column():
    slots = [[1, 3, 5], [2, 4, 6]]
    pairs = Pairs(np.asarray([0, 0, 1]), *map(np.asarray, slots), np.asarray([1, 0.5, 0.25], np.float32))
    chosen = pairs[np.asarray([2, 0])]
    assert (chosen.microbatch.tolist(), chosen.chosen.tolist(), chosen.rejected.tolist()) == ([1, 0], [5, 1], [6, 2])
    assert chosen.weight.tolist() == [0.25, 1]
    assert len(pairs[pairs.microbatch == 0]) == 2
