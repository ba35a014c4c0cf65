"""The sizes of a run's batches hold every unit; a microbatch closes when one of them is reached."""

import dataclasses

import pytest

from care_jax.data.packing.fill import fill
from care_jax.data.packing.plans import plan_step
from care_jax.errors import UserError
from tests.data import corpora


def test_what_cannot_fit_is_refused_with_what_it_needs():
    corpus = corpora.corpus_of([(4, [40, 40, 40, 40]), (4, [5, 5])])
    units = corpora.units_of(corpus, "group")
    with pytest.raises(UserError, match=r"microbatch_rows 2: the question 'q0' .* need 4 rows of 64"):
        corpora.shape_of(corpus, units, rows=2)
    with pytest.raises(UserError, match=r"row_length 32: .* an example of 44 tokens"):
        corpora.shape_of(corpus, units, row_length=32)
    # Its pairs fit one by one.
    pairs = corpora.units_of(corpus, "pair")
    batch = fill(plan_step(pairs, corpus, corpora.shape_of(corpus, pairs, rows=2)), corpus)
    assert corpora.read_back(batch) == corpora.spelled(corpus, pairs)
    with pytest.raises(UserError, match="no unit is left"):
        corpora.shape_of(corpus, [])


def test_capacities_close_a_microbatch():
    corpus = corpora.corpus_of([(2, [3, 3])] * 8)
    units = corpora.units_of(corpus, "pair")
    shape = corpora.shape_of(corpus, units, rows=1)
    assert plan_step(units, corpus, shape).count == 1
    for field, value in (("responses", 4), ("completion_tokens", 12), ("pairs", 2)):
        plan = plan_step(units, corpus, dataclasses.replace(shape, **{field: value}))
        assert plan.count == 4, field
        assert corpora.read_back(fill(plan, corpus)) == corpora.spelled(corpus, units)
