"""A packed step gives back its units exactly, whatever the layout, and every host its own rows of it."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax.data import chat, pipeline, readers
from care_jax.data.corpus import tokenize
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.capacities import batch_shape, mismatched_shape
from care_jax.data.packing.fill import fill
from care_jax.data.packing.plans import mismatched_sequences, plan_responses, plan_step
from care_jax.data.preferences import Unit, make_units
from care_jax.errors import UserError

from . import corpora

SHAPES = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 20), min_size=2, max_size=6)), min_size=2, max_size=8
)
SWITCHES = [
    {"packing": packing, "share_responses": responses, "share_prompts": prompts}
    for packing, responses, prompts in itertools.product((True, False), repeat=3)
]


def laid_out(corpus, units, **options):
    return batch_shape(units, corpus, **({"rows": 6, "row_length": 64} | options))


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.sampled_from(sorted(corpora.VIEWS)), st.sampled_from(SWITCHES), st.integers(0, 3))
def test_unpacking_gives_back_the_examples(shapes, view, switches, repeated):
    corpus = corpora.corpus_of(shapes)
    units = corpora.units_of(corpus, view)
    units += units[:repeated]  # the end of an epoch and the beginning of the next
    layout = laid_out(corpus, units, **switches)
    plan = plan_step(units, corpus, layout)
    batch = fill(plan, corpus)
    assert corpora.read_back(batch) == corpora.spelled(corpus, units)

    # Every token stands in exactly one segment; all the rest is padding.
    assert plan.tokens == np.count_nonzero(batch.segment_ids) == np.count_nonzero(batch.tokens)
    assert np.all((batch.prompt_segment_ids > 0) == (batch.segment_ids > 0))
    for m in range(plan.count):
        slots = [one.slot for one in corpora.unpack(batch) if one.microbatch == m]
        assert slots == list(range(len(slots)))
        assert np.all(batch.lengths[m, len(slots) :] == 1)
        held = batch.completion_segments[m]
        assert np.array_equal(np.bincount(held[held < layout.responses]), batch.lengths[m, : len(slots)])
        places = batch.completion_positions[m][held < layout.responses]
        assert len(set(places.tolist())) == len(places)
        if switches["share_responses"] and view != "unpaired":
            responses = [(one.prompt, one.completion) for one in corpora.unpack(batch) if one.microbatch == m]
            assert len(set(responses)) == len(responses)
    if not switches["packing"]:
        assert all(len(set(row.tolist()) - {0}) <= 1 for row in batch.segment_ids.reshape(-1, 64))
    numbers = {str(np.asarray(x).dtype) for x in jax.tree.leaves(batch)}
    assert numbers == {"int32", "float32", "bool"}


@settings(max_examples=10, deadline=None)
@given(SHAPES, st.sampled_from([1, 2, 3, 6]))
def test_hosts_together_hold_exactly_the_one_host_step(shapes, hosts):
    corpus = corpora.corpus_of(shapes)
    units = corpora.units_of(corpus, "group")
    plan = plan_step(units, corpus, laid_out(corpus, units))
    whole = fill(plan, corpus)
    parts = [fill(plan, corpus, slice(r, r + 6 // hosts)) for r in range(0, 6, 6 // hosts)]
    for name, value in vars(whole).items():
        if value is None:
            continue
        own = [getattr(part, name) for part in parts]
        if name in ("tokens", "positions", "segment_ids", "prompt_segment_ids"):
            assert np.array_equal(np.concatenate(own, axis=1), value)
        else:
            assert all(np.array_equal(one, value) for one in own)


def test_shared_prompt_layout_by_hand():
    corpus = corpora.corpus_of([(2, [3, 1])])
    layout = BatchShape(rows=1, row_length=8, responses=3, completions=5)
    batch = fill(plan_step([Unit(0, (0, 1), ((0, 1),))], corpus, layout), corpus)
    assert batch.tokens[0].tolist() == [[1, 2, 3, 4, 5, 6, 0, 0]]
    assert batch.positions[0].tolist() == [[0, 1, 2, 3, 4, 2, 0, 0]]
    assert batch.segment_ids[0].tolist() == [[1, 1, 2, 2, 2, 3, 0, 0]]
    assert batch.prompt_segment_ids[0].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert batch.completion_positions[0].tolist() == [2, 3, 4, 5, 0]
    assert batch.predictor_positions[0].tolist() == [1, 2, 3, 1, 0]
    assert batch.completion_segments[0].tolist() == [0, 0, 0, 1, 3]
    assert batch.lengths[0].tolist() == [3, 1, 1]
    assert batch.ratings[0].tolist() == [10, 9, 0]


def test_groups_take_several_rows_but_never_straddle_a_microbatch():
    corpus = corpora.corpus_of([(4, [20, 20, 20, 20])] * 3)
    units = corpora.units_of(corpus, "group")
    plan = plan_step(units, corpus, laid_out(corpus, units, rows=2))
    assert plan.count == 3
    assert np.bincount(plan.responses.microbatch).tolist() == [4, 4, 4]
    # 84 tokens and the prompt a second time in the second row
    assert plan.tokens == 3 * 88


def test_pairs_of_one_question_share_its_responses():
    corpus = corpora.corpus_of([(4, [10, 10, 10])] * 4)
    units = corpora.units_of(corpus, "pair")
    plan = plan_step(units[::2] + units[1::2], corpus, laid_out(corpus, units, rows=2))
    assert (len(plan.responses), len(plan.pairs)) == (12, 12)


def test_what_cannot_fit_is_refused_with_what_it_needs():
    corpus = corpora.corpus_of([(4, [40, 40, 40, 40]), (4, [5, 5])])
    units = corpora.units_of(corpus, "group")
    with pytest.raises(UserError, match=r"microbatch_rows 2: the question 'q0' .* need 4 rows of 64"):
        laid_out(corpus, units, rows=2)
    with pytest.raises(UserError, match=r"row_length 32: .* an example of 44 tokens"):
        laid_out(corpus, units, row_length=32)
    # Its pairs one by one do fit.
    pairs = corpora.units_of(corpus, "pair")
    batch = fill(plan_step(pairs, corpus, laid_out(corpus, pairs, rows=2)), corpus)
    assert corpora.read_back(batch) == corpora.spelled(corpus, pairs)
    with pytest.raises(UserError, match="no unit is left"):
        laid_out(corpus, [])


def test_capacities_close_a_microbatch():
    corpus = corpora.corpus_of([(2, [3, 3])] * 8)
    units = corpora.units_of(corpus, "pair")
    layout = laid_out(corpus, units, rows=1)
    assert plan_step(units, corpus, layout).count == 1
    for field, value in (("responses", 4), ("completions", 12), ("pairs", 2)):
        plan = plan_step(units, corpus, dataclasses.replace(layout, **{field: value}))
        assert plan.count == 4, field
        assert corpora.read_back(fill(plan, corpus)) == corpora.spelled(corpus, units)


def test_mismatched_completions():
    corpus = corpora.corpus_of([(3, [4, 5, 6]), (3, [7, 8]), (10, [2, 60])], max_length=64)
    units = [Unit(0, (0,), (), True), Unit(0, (1,), (), False), Unit(1, (0,), (), True), Unit(2, (1,), (), False)]
    sequences = mismatched_sequences(units, corpus)
    assert sequences == [(0, 6), (0, 6), (1, 1), (2, 3)]
    layout = laid_out(corpus, units, rows=2)
    plan = plan_step(units, corpus, layout, mismatched_shape(layout, corpus))
    batch = fill(plan, corpus, ref_logps=lambda questions, responses: 10.0 * questions + responses)
    other = batch.mismatched
    assert float(other.segment_weights.sum()) == 4
    expected = [tuple(map(tuple, (ids.tolist() for ids in corpus.sequence(*one)))) for one in sequences]
    assert sorted((one.prompt, one.completion) for one in corpora.unpack(other)) == sorted(expected)
    assert sorted(other.ref_logps[other.segment_weights > 0].tolist()) == [6, 6, 11, 23]
    # Behind the prompt of another question a completion is cut to what that leaves of max_length.
    assert corpus.length(0, 6) == 54
    with pytest.raises(UserError, match="two different questions"):
        mismatched_sequences(units[:2], corpus)


@settings(max_examples=10, deadline=None)
@given(SHAPES)
def test_responses_are_laid_out_once_and_found_again(shapes):
    corpus = corpora.corpus_of(shapes)
    sequences = [(q, corpus.response_id(q, r)) for q in range(len(corpus)) for r in range(len(shapes[q][1]))][::-1]
    layout = dataclasses.replace(laid_out(corpus, corpora.units_of(corpus, "pair"), rows=1), microbatches=2)
    plan = plan_responses(corpus, sequences, layout)
    found = {}
    for first in range(0, plan.count, 2):
        batch = fill(plan, corpus, microbatches=(first, first + 2))
        assert batch.tokens.shape == (2, 1, 64)
        assert batch.n_microbatches == min(2, plan.count - first)
        found |= {(one.microbatch + first, one.slot): (one.prompt, one.completion) for one in corpora.unpack(batch)}
    assert len(found) == len(sequences)
    for place, sequence in zip(zip(plan.responses.microbatch.tolist(), plan.responses.slot.tolist()), sequences):
        assert found[place] == tuple(tuple(ids.tolist()) for ids in corpus.sequence(*sequence))


@pytest.mark.parametrize("seed", range(3))
def test_fill_and_number_of_microbatches(seed):
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.lognormal(4.6, 0.7, (128, 9)), 8, 900).astype(int)
    shapes = [(int(rng.integers(20, 80)), sizes[i, : rng.integers(6, 10)].tolist()) for i in range(128)]
    corpus = corpora.corpus_of(shapes, max_length=2048)
    units = corpora.units_of(corpus, "group")
    plan = plan_step(units, corpus, laid_out(corpus, units, rows=2, row_length=2048))
    assert plan.efficiency >= 0.95
    distinct = int(corpus.prompt_lengths.sum() + corpus.completion_lengths.sum())
    assert plan.count <= -(-distinct // 4096) + 1
    assert plan.tokens <= 1.01 * distinct  # prompts repeated where a group takes a second row


@pytest.mark.slow
def test_fill_of_real_rows(shared, real_models):
    """At least 0.95 of the slots run over many epochs, and in no step more microbatches than its tokens fill."""
    tokenizer = chat.load_tokenizer(str(real_models / "tokenizers" / "qwen3"))
    corpus = tokenize(
        readers.read("care", str(shared / "data" / "care_rated.jsonl")).questions, tokenizer, max_length=2048
    )
    units = make_units(corpus.questions, policy="all", unit="group")
    stream, layout = pipeline.mixture([(units, 1)]), batch_shape(units, corpus, rows=2, row_length=2048)
    plans = [plan_step(pipeline.step_units(stream, step, 128), corpus, layout) for step in range(56)]
    for plan in plans:
        distinct = len(set(plan.responses.response.tolist()))
        assert distinct == len(plan.responses)
        assert plan.count == -(-plan.tokens // 4096)
    assert sum(plan.tokens for plan in plans) / sum(plan.count * 4096 for plan in plans) >= 0.95
