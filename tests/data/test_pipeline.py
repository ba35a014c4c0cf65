"""The stream: step n depends on (seed, n), and an epoch has each unit as often as the weight of its source says."""

import dataclasses
from collections import Counter

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax.data import pipeline
from care_jax.data.preferences import Unit
from care_jax.errors import UserError
from tests.data import corpora


def named(count, first=0):
    return [Unit(first + n, (0,), (), True) for n in range(count)]


def questions_of(stream, start, stop):
    return [stream[i].question for i in range(start, stop)]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**33), st.integers(1, 20), st.integers(1, 6))
def test_epochs_are_grains_permutations(seed, count, examples):
    stream = pipeline.mixture([(named(count), 1)], seed=seed)
    expected = grain.MapDataset.range(count).shuffle(seed=seed % 2**32)
    assert questions_of(stream, 0, 3 * count) == [expected[i] for i in range(3 * count)]
    steps = [pipeline.step_units(stream, n, examples) for n in range(-(-2 * count // examples))]
    assert [u.question for step in steps for u in step][: 2 * count] == questions_of(stream, 0, 2 * count)
    assert all(len(step) == examples for step in steps)


def test_file_order_wraps_round():
    stream = pipeline.mixture([(named(3), 1)], shuffle=False)
    assert [[u.question for u in pipeline.step_units(stream, n, 2)] for n in range(3)] == [[0, 1], [2, 0], [1, 2]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_weights_are_passes_an_epoch(shuffle):
    sources = [(named(4), 2), (named(6, 10), 0.5), (named(3, 20), 1)]
    stream = pipeline.mixture(sources, seed=5, shuffle=shuffle)
    assert len(stream) == 8 + 3 + 3
    halves = []
    for epoch in range(4):
        seen = Counter(questions_of(stream, 14 * epoch, 14 * (epoch + 1)))
        assert {q: seen[q] for q in range(4)} == dict.fromkeys(range(4), 2)
        assert {q: seen[q] for q in range(20, 23)} == dict.fromkeys(range(20, 23), 1)
        halves.append({q for q in seen if 10 <= q < 16})
    assert [len(half) for half in halves] == [3, 3, 3, 3]
    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(10, 16))
    with pytest.raises(UserError, match="weight"):
        pipeline.mixture([(named(2), 0)])
    with pytest.raises(UserError, match="no unit is left"):
        pipeline.mixture([([], 1)])


def test_number_of_steps():
    stream = pipeline.mixture([(named(10), 1)])
    counts = [
        pipeline.number_of_steps(stream, 4, *run) for run in ((1, None), (2, None), (None, 7), (1, 2), (0.4, None))
    ]
    assert counts == [3, 5, 7, 2, 1]
    with pytest.raises(UserError, match="max_steps"):
        pipeline.number_of_steps(stream, 4, None, None)


def small_run(view="pair", examples=3):
    corpus = corpora.corpus_of([(3, [4, 9, 2]), (5, [7, 7]), (2, [1, 6, 3, 8]), (4, [5, 5])])
    stream = pipeline.units(corpus, seed=1, **corpora.VIEWS[view])
    epoch = [stream[i] for i in range(len(stream))]
    shape = pipeline.batch_shape(epoch, corpus, pipeline.BatchShape(2, 24))
    total = pipeline.number_of_steps(stream, examples, 2, None)
    return pipeline.StepSource(stream, corpus, examples, shape), total


def test_steps_by_random_access_and_in_turn_are_the_same(monkeypatch):
    source, total = small_run()
    source = pipeline.set_microbatches(source, total)
    all_steps = list(pipeline.steps(source, 0, total))
    assert [n for n, _, _ in all_steps] == list(range(total))
    monkeypatch.setattr(pipeline, "_THREADS", 1)
    resumed = list(pipeline.steps(source, 2, total))
    for (n, batch, _), (m, other, _) in zip(all_steps[2:], resumed, strict=True):
        assert n == m
        assert all(map(np.array_equal, jax.tree.leaves(batch), jax.tree.leaves(other)))
    shapes = {tuple(x.shape for x in jax.tree.leaves(batch)) for _, batch, _ in all_steps}
    assert len(shapes) == 1  # so the step is compiled once
    assert max(int(batch.n_microbatches) for _, batch, _ in all_steps) == source.shape.microbatches
    for n, batch, _ in all_steps:
        assert corpora.read_back(batch) == corpora.spelled(source.corpus, source.units(n))


def test_what_a_run_needs_of_the_reference():
    source, total = small_run("unpaired", examples=6)
    mismatched = pipeline.mismatched_shape(source.shape, source.corpus)
    source = pipeline.set_microbatches(dataclasses.replace(source, mismatched_shape=mismatched), total)
    needed = pipeline.needed_sequences(source, total)
    table = {sequence: float(n + 1) for n, sequence in enumerate(needed)}

    def ref_logps(questions, responses):
        return np.asarray([table[int(q), int(r)] for q, r in zip(questions, responses)], np.float32)

    used = set()
    for _, batch, _ in pipeline.steps(source, 0, total, ref_logps=ref_logps):
        for part in (batch, batch.mismatched):
            used.update(part.ref_logps[part.response_weights > 0].tolist())
            assert part.response_weights.sum() == source.examples
    assert used == set(table.values())


def test_another_dataset_may_be_the_stream():
    source, _ = small_run()
    first, second = source.stream[0], source.stream[1]
    dataset = grain.MapDataset.source([first, second]).repeat()
    source = pipeline.set_microbatches(dataclasses.replace(source, stream=dataset), 2)
    batches = {n: batch for n, batch, _ in pipeline.steps(source, 0, 2)}
    assert corpora.read_back(batches[0]) == corpora.spelled(source.corpus, [first, second, first])
