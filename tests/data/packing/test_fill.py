"""A packed step contains exactly its units, whatever its shape; each host fills its own rows of it."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.fill import fill
from care_jax.data.packing.plans import plan_step
from care_jax.data.preferences import Unit
from tests.data import corpora


@settings(max_examples=25, deadline=None)
@given(corpora.SHAPES, st.sampled_from(sorted(corpora.VIEWS)), st.sampled_from(corpora.SWITCHES), st.integers(0, 3))
def test_unpacking_gives_back_the_examples(shapes, view, switches, repeated):
    corpus = corpora.corpus_of(shapes)
    units = corpora.units_of(corpus, view)
    units += units[:repeated]  # the end of an epoch and the beginning of the next
    shape = corpora.shape_of(corpus, units, **switches)
    plan = plan_step(units, corpus, shape)
    batch = fill(plan, corpus)
    assert corpora.read_back(batch) == corpora.spelled(corpus, units)

    # Every token is in exactly one segment; the rest is padding.
    assert plan.tokens == np.count_nonzero(batch.segment_ids) == np.count_nonzero(batch.tokens)
    assert np.all((batch.prompt_segment_ids > 0) == (batch.segment_ids > 0))
    for m in range(plan.count):
        slots = [one.slot for one in corpora.unpack(batch) if one.microbatch == m]
        assert slots == list(range(len(slots)))
        assert np.all(batch.lengths[m, len(slots) :] == 1)
        owners = batch.completion_slots[m]
        assert np.array_equal(np.bincount(owners[owners < shape.responses]), batch.lengths[m, : len(slots)])
        places = batch.completion_positions[m][owners < shape.responses]
        assert len(set(places.tolist())) == len(places)
        if switches["share_responses"] and view != "unpaired":
            responses = [(one.prompt, one.completion) for one in corpora.unpack(batch) if one.microbatch == m]
            assert len(set(responses)) == len(responses)
    if not switches["packing"]:
        assert all(len(set(row.tolist()) - {0}) <= 1 for row in batch.segment_ids.reshape(-1, 64))
    numbers = {str(np.asarray(x).dtype) for x in jax.tree.leaves(batch)}
    assert numbers == {"int32", "float32", "bool"}


@settings(max_examples=10, deadline=None)
@given(corpora.SHAPES, st.sampled_from([1, 2, 3, 6]))
def test_hosts_together_hold_exactly_the_one_host_step(shapes, hosts):
    corpus = corpora.corpus_of(shapes)
    units = corpora.units_of(corpus, "group")
    plan = plan_step(units, corpus, corpora.shape_of(corpus, units))
    all_rows = fill(plan, corpus)
    parts = [fill(plan, corpus, slice(r, r + 6 // hosts)) for r in range(0, 6, 6 // hosts)]
    for name, value in vars(all_rows).items():
        if value is None:
            continue
        of_hosts = [getattr(part, name) for part in parts]
        if name in ("tokens", "positions", "segment_ids", "prompt_segment_ids"):
            assert np.array_equal(np.concatenate(of_hosts, axis=1), value)
        else:
            assert all(np.array_equal(array, value) for array in of_hosts)


def test_shared_prompt_layout_by_hand():
    corpus = corpora.corpus_of([(2, [3, 1])])
    shape = BatchShape(rows=1, row_length=8, responses=3, completion_tokens=5)
    batch = fill(plan_step([Unit(0, (0, 1), ((0, 1),))], corpus, shape), corpus)
    assert batch.tokens[0].tolist() == [[1, 2, 3, 4, 5, 6, 0, 0]]
    assert batch.positions[0].tolist() == [[0, 1, 2, 3, 4, 2, 0, 0]]
    assert batch.segment_ids[0].tolist() == [[1, 1, 2, 2, 2, 3, 0, 0]]
    assert batch.prompt_segment_ids[0].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert batch.completion_positions[0].tolist() == [2, 3, 4, 5, 0]
    assert batch.predictor_positions[0].tolist() == [1, 2, 3, 1, 0]
    assert batch.completion_slots[0].tolist() == [0, 0, 0, 1, 3]
    assert batch.lengths[0].tolist() == [3, 1, 1]
    assert batch.ratings[0].tolist() == [10, 9, 0]
