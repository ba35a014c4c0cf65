"""Pairs, units, splits, fractions and limits depend on the seed and the questions, never on the order of the file."""

import dataclasses
import itertools
import random
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax.config.blocks import DataConfig, LabelsConfig, PairsConfig, UnitName
from care_jax.data import preferences
from care_jax.data.preferences import Limit, PairPolicy, make_units, pair_indices
from care_jax.data.questions import Question, Response, question_key
from care_jax.errors import UserError

RATINGS = st.lists(st.integers(1, 10).map(float), min_size=1, max_size=9)


def question(ratings, name="q", culture="arab", category="norms", fields=None, labels=None):
    responses = tuple(
        Response(f"{name} answer {i}", r, f"model{i % 3}", i, (fields or {}).get(i, "response"), (labels or {}).get(i))
        for i, r in enumerate(ratings)
    )
    return Question(name, responses, question_key(name, culture), culture, "native", category)


def many(count):
    cultures, categories = ("arab", "chinese", "japanese"), ("norms", "literacy")
    return [question([8.0, 3.0], f"q{i}", cultures[i % 3], categories[i % 2]) for i in range(count)]


def words(question, pairs):
    return {(question.responses[i].content, question.responses[j].content) for i, j in pairs}


@settings(max_examples=50, deadline=None)
@given(RATINGS, st.sampled_from(preferences.POLICIES), st.integers(1, 4), st.sampled_from([None, 1, 3]))
def test_ties_never_pair_and_limits_hold(ratings, policy, min_gap, most):
    pairs = pair_indices(ratings, PairPolicy(policy, min_gap, most, seed=3), key="k")
    valid = {(i, j) for i, j in itertools.permutations(range(len(ratings)), 2) if ratings[i] - ratings[j] >= min_gap}
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) <= valid
    if most:
        assert len(pairs) <= most
    levels = sorted(set(ratings))
    expected = {
        "all": len(valid),
        "best_worst": int(levels[-1] - levels[0] >= min_gap),
        "adjacent": sum(high - low >= min_gap for low, high in itertools.pairwise(levels)),
        "random": min(len(valid), most or 1),
    }[policy]
    assert len(pairs) == (min(expected, most) if most else expected)


@settings(max_examples=30, deadline=None)
@given(RATINGS, st.sampled_from(preferences.POLICIES), st.sampled_from([None, 2]), st.randoms(use_true_random=False))
def test_policies_do_not_see_the_order_of_the_file(ratings, policy, most, rng):
    one = question(ratings)
    shuffled = list(one.responses)
    rng.shuffle(shuffled)
    other = dataclasses.replace(one, responses=tuple(shuffled))
    pairs = [words(q, preferences.question_pairs(q, PairPolicy(policy, 1, most, 7))) for q in (one, other)]
    assert pairs[0] == pairs[1]


def test_seven_seven_three():
    assert [len(pair_indices([7, 7, 3], PairPolicy(policy))) for policy in preferences.POLICIES] == [2, 1, 1, 1]
    # 6.5 is the mean of conflicting ratings. It differs from 7, so the two are a pair at the least gap.
    assert pair_indices([6.5, 7.0], PairPolicy("all", 1)) == [(1, 0)]
    assert pair_indices([6.5, 7.0], PairPolicy("all", 2)) == []
    with pytest.raises(UserError, match="best_worst"):
        pair_indices([1, 2], PairPolicy("best_wurst"))


def test_data_that_name_the_pair_are_taken_at_their_word():
    one = question([0.0, 1.0], fields={0: "rejected", 1: "chosen"})
    assert preferences.question_pairs(one, PairPolicy("all", 3)) == [(1, 0)]
    assert [u.desirable for u in make_units([one], "unpaired", desirable_min=7, undesirable_max=4)] == [False, True]


@settings(max_examples=20, deadline=None)
@given(st.lists(RATINGS, min_size=1, max_size=5), st.sampled_from(preferences.PAIR_WEIGHTS))
def test_groups_hold_the_pairs_of_the_pair_units(all_ratings, weights):
    questions = [question(ratings, f"q{i}") for i, ratings in enumerate(all_ratings)]

    def spelled(unit, reduction):
        units = make_units(questions, policy="all", unit=unit, weights=weights, reduction=reduction)
        return sorted(
            (u.question, u.responses[i], u.responses[j], w) for u in units for (i, j), w in zip(u.pairs, u.weights)
        )

    for reduction in ("pair", "group"):
        assert spelled("pair", reduction) == spelled("group", reduction)
    for number, first, second, weight in spelled("group", "pair"):
        ratings = all_ratings[number]
        assert weight == (ratings[first] - ratings[second] if weights == "gap" else 1)
    totals: dict[int, float] = {}
    for number, *_, weight in spelled("pair", "group"):
        totals[number] = totals.get(number, 0) + weight
    assert all(abs(total - 1) < 1e-9 for total in totals.values())


def test_weights_by_gap():
    one = question([9.0, 5.0, 4.0])
    (group,) = make_units([one], policy="all", unit="group", weights="gap")
    assert dict(zip(group.pairs, group.weights)) == {(0, 1): 4, (0, 2): 5, (1, 2): 1}
    (group,) = make_units([one], policy="all", unit="group", weights="gap", reduction="group")
    assert group.weights == pytest.approx((0.4, 0.5, 0.1))
    cut = preferences.limit_units([one], [group], Limit(pairs=2), reduction="group")[0]
    assert cut.weights == pytest.approx((4 / 9, 5 / 9))
    named = question([0.0, 1.0], fields={0: "rejected", 1: "chosen"})
    assert make_units([named], weights="gap")[0].weight == 1
    with pytest.raises(UserError, match=r"row 1: .* rated 0.0, .* 1.0; data\.pairs\.weights gap needs"):
        make_units([question([1.0, 0.0], fields={0: "rejected", 1: "chosen"})], weights="gap")
    with pytest.raises(UserError, match="did you mean 'gap'"):
        make_units([one], weights="gaps")


@settings(max_examples=30, deadline=None)
@given(RATINGS)
def test_labels_relative_to_the_mean(ratings):
    units = make_units([question(ratings)], "unpaired", labels="relative")
    mean = sum(ratings) / len(ratings)
    assert {u.responses[0]: u.desirable for u in units} == {
        i: rating > mean for i, rating in enumerate(ratings) if abs(rating - mean) > 1e-6
    }
    assert (len(units) == 0) == (len(set(ratings)) == 1)


def test_unpaired_and_lists():
    one = question([9.0, 7.0, 5.0, 4.0, 1.0])
    labels = {u.responses[0]: u.desirable for u in make_units([one], "unpaired")}
    assert labels == {0: True, 1: True, 3: False, 4: False}
    assert [u.responses for u in make_units([one], "unpaired", labels="best")] == [(0,)]
    explicit = question([None, None], labels={0: True, 1: False})
    assert [u.desirable for u in make_units([explicit], "unpaired")] == [True, False]
    lists = make_units([one, question([5.0, 5.0]), question([1.0])], "lists")
    assert [(u.question, u.responses, u.pairs) for u in lists] == [(0, (0, 1, 2, 3, 4), ())]
    with pytest.raises(UserError, match="did you mean 'lists'"):
        make_units([one], "list")


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 5), st.integers(10, 60))
def test_fractions_are_nested_and_stratified_and_no_key_is_in_two_splits(seed, count):
    questions = many(count)
    questions += questions[:5]  # a prompt that returns in another row
    random.Random(seed).shuffle(questions)
    train, held_out = preferences.split(questions, seed, fraction=0.25)
    assert {q.key for q in train}.isdisjoint(q.key for q in held_out)
    assert len(train) + len(held_out) == len(questions)
    assert len({q.key for q in held_out}) == int(0.25 * count + 0.5)
    before: set[str] = set()
    for fraction in (0.1, 0.25, 0.5, 0.8, 1.0):
        kept = {q.key for q in preferences.take_fraction(questions, fraction, seed)}
        assert before <= kept
        before = kept
        for culture in ("arab", "chinese", "japanese"):
            for category in ("norms", "literacy"):
                keys = {q.key for q in questions if (q.culture, q.category) == (culture, category)}
                assert abs(len(keys & kept) - fraction * len(keys)) <= 1
    shuffled = questions[::-1]
    assert {q.key for q in preferences.split(shuffled, seed, fraction=0.25)[1]} == {q.key for q in held_out}


def test_split_by_number_and_its_mistakes():
    train, held_out = preferences.split(many(30), 0, count=6)
    assert (len(train), len(held_out)) == (24, 6)
    assert len({(q.culture, q.category) for q in held_out}) == 6
    with pytest.raises(UserError, match="none would be left"):
        preferences.split(many(6), 0, count=6)
    with pytest.raises(UserError, match=r"data\.fraction"):
        preferences.take_fraction(many(6), 1.5)


@pytest.mark.parametrize("unit", ["pair", "group"])
def test_limits(unit):
    questions = [question([9.0, 6.0, 3.0], f"q{i}") for i in range(10)]
    units = make_units(questions, policy="all", unit=unit, reduction="group")

    def pairs_of(limited):
        return {(u.question, u.responses[i], u.responses[j]) for u in limited for i, j in u.pairs}

    before: set = set()
    for limit in (1, 4, 11, 30, 99):
        limited = preferences.limit_units(questions, units, Limit(pairs=limit), reduction="group")
        assert len(pairs_of(limited)) == min(limit, 30)
        assert before <= pairs_of(limited)
        before = pairs_of(limited)
        for number in {u.question for u in limited}:
            question_units = [u for u in limited if u.question == number]
            assert sum(u.weight * len(u.pairs) for u in question_units) == pytest.approx(1)
    limited = preferences.limit_units(questions, units, Limit(questions=4))
    assert len({u.question for u in limited}) == 4
    with pytest.raises(UserError, match=r"limit\.pairs"):
        preferences.limit_units(questions, make_units(questions, "lists"), Limit(pairs=3))


def test_limits_do_not_see_the_order_of_the_file():
    rows = [
        Question("p", (Response(f"c{i}", 1.0, "", i, "chosen"), Response(f"r{i}", 0.0, "", i, "rejected")), "p")
        for i in range(20)
    ]

    def kept(questions):
        limited = preferences.limit_units(questions, make_units(questions), Limit(pairs=7))
        return {questions[unit.question].responses[0].content for unit in limited}

    assert len(kept(rows)) == 7
    assert kept(rows) == kept(rows[::-1])


def test_real_ratings(shared):
    from care_jax.data import readers

    questions = readers.read("care", str(shared / "data/care_rated.jsonl")).questions
    counts = {p: len(make_units(questions, policy=p)) for p in preferences.POLICIES}
    distinct = [sorted({r.rating for r in q.responses}) for q in questions]
    assert counts == {
        "all": 6071,
        "best_worst": 450,
        "adjacent": sum(len(levels) - 1 for levels in distinct),
        "random": sum(len(levels) > 1 for levels in distinct),
    }
    assert len(make_units(questions, policy="all", min_gap=3)) == 3037


def test_the_configuration_has_the_same_choices():
    names, bounds = get_args(get_type_hints(DataConfig)["labels"])
    assert {"thresholds", *get_args(names)} == set(preferences.LABELS)
    assert bounds is LabelsConfig  # its two bounds are those of `thresholds`
    assert get_args(UnitName) == preferences.UNITS
    assert get_args(get_type_hints(PairsConfig)["weights"]) == preferences.PAIR_WEIGHTS
