"""Which microbatch and slot each unit gets: groups, pairs, single responses, mismatched completions; clusters."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.capacities import mismatched_shape
from care_jax.data.packing.fill import fill
from care_jax.data.packing.plans import (
    clusters_of,
    indivisible_parts,
    join_questions,
    mismatched_sequences,
    plan_responses,
    plan_step,
)
from care_jax.data.preferences import Unit
from care_jax.errors import UserError
from tests.data import corpora

SHAPE = BatchShape(rows=1, row_length=64, responses=8, completion_tokens=64)
GROUP = Unit(0, (0, 1, 2), ((0, 1), (1, 2)), None, 0.5)


def test_groups_take_several_rows_but_never_straddle_a_microbatch():
    corpus = corpora.corpus_of([(4, [20, 20, 20, 20])] * 3)
    units = corpora.units_of(corpus, "group")
    plan = plan_step(units, corpus, corpora.shape_of(corpus, units, rows=2))
    assert plan.count == 3
    assert np.bincount(plan.responses.microbatch).tolist() == [4, 4, 4]
    # 84 tokens, and the prompt again in the second row
    assert plan.tokens == 3 * 88


def test_pairs_of_one_question_share_its_responses():
    corpus = corpora.corpus_of([(4, [10, 10, 10])] * 4)
    units = corpora.units_of(corpus, "pair")
    plan = plan_step(units[::2] + units[1::2], corpus, corpora.shape_of(corpus, units, rows=2))
    assert (len(plan.responses), len(plan.pairs)) == (12, 12)


def test_mismatched_completions():
    corpus = corpora.corpus_of([(3, [4, 5, 6]), (3, [7, 8]), (10, [2, 60])], max_length=64)
    units = [Unit(0, (0,), (), True), Unit(0, (1,), (), False), Unit(1, (0,), (), True), Unit(2, (1,), (), False)]
    sequences = mismatched_sequences(units, corpus)
    assert sequences == [(0, 6), (0, 6), (1, 1), (2, 3)]
    shape = corpora.shape_of(corpus, units, rows=2)
    plan = plan_step(units, corpus, shape, mismatched_shape(shape, corpus))
    batch = fill(plan, corpus, ref_logps=lambda questions, responses: 10.0 * questions + responses)
    other = batch.mismatched
    assert float(other.response_weights.sum()) == 4
    expected = [tuple(map(tuple, (ids.tolist() for ids in corpus.sequence(*one)))) for one in sequences]
    assert sorted((one.prompt, one.completion) for one in corpora.unpack(other)) == sorted(expected)
    assert sorted(other.ref_logps[other.response_weights > 0].tolist()) == [6, 6, 11, 23]
    # After the prompt of another question, a completion is cut to what that prompt leaves of max_length.
    assert corpus.length(0, 6) == 54
    with pytest.raises(UserError, match="two different questions"):
        mismatched_sequences(units[:2], corpus)


@settings(max_examples=10, deadline=None)
@given(corpora.SHAPES)
def test_responses_are_laid_out_once_and_found_again(shapes):
    corpus = corpora.corpus_of(shapes)
    sequences = [(q, corpus.response_id(q, r)) for q in range(len(corpus)) for r in range(len(shapes[q][1]))][::-1]
    shape = dataclasses.replace(corpora.shape_of(corpus, corpora.units_of(corpus, "pair"), rows=1), microbatches=2)
    plan = plan_responses(corpus, sequences, shape)
    examples = {}
    for first in range(0, plan.count, 2):
        batch = fill(plan, corpus, microbatches=(first, first + 2))
        assert batch.tokens.shape == (2, 1, 64)
        assert batch.n_microbatches == min(2, plan.count - first)
        examples |= {(one.microbatch + first, one.slot): (one.prompt, one.completion) for one in corpora.unpack(batch)}
    assert len(examples) == len(sequences)
    for place, sequence in zip(zip(plan.responses.microbatch.tolist(), plan.responses.slot.tolist()), sequences):
        assert examples[place] == tuple(tuple(ids.tolist()) for ids in corpus.sequence(*sequence))


def test_a_group_is_divided_into_its_pairs_if_responses_are_not_shared():
    assert indivisible_parts([GROUP], SHAPE) == [GROUP]
    alone = dataclasses.replace(SHAPE, share_responses=False)
    pairs = [Unit(0, (0, 1), ((0, 1),), None, 0.5), Unit(0, (1, 2), ((0, 1),), None, 0.5)]
    assert indivisible_parts([GROUP], alone) == pairs
    label = Unit(0, (1,), (), True)
    assert indivisible_parts([label], alone) == [label]


def test_clusters_of_a_question_are_joined_with_or_without_its_repeated_responses():
    corpus = corpora.corpus_of([(4, [3, 5]), (2, [6, 7, 8])])
    first, second = Unit(1, (0, 1), ((0, 1),)), Unit(1, (1, 2), ((0, 1),))
    clusters = clusters_of([first, second], corpus)
    assert [(cluster.prompt, cluster.responses, cluster.lengths) for cluster in clusters] == [
        (2, [2, 3], [6, 7]),
        (2, [3, 4], [7, 8]),
    ]
    (merged,) = join_questions(clusters, merge=True)
    (repeated,) = join_questions(clusters, merge=False)
    assert (merged.responses, merged.pairs, merged.parts) == ([2, 3, 4], 2, clusters)
    assert repeated.responses == [2, 3, 3, 4]
