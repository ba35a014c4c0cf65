"""Coverage of the intervals, paired differences, and agreement compared with scipy and textbook numbers."""

import numpy as np
import pytest
from scipy import stats

from care_jax.evaluation import statistics


def covered(draw, truth, times):
    hits = 0
    for seed in range(times):
        result = statistics.interval(draw(np.random.default_rng(1000 + seed)), seed)
        hits += result.low <= truth <= result.high
    return hits / times


def ratings(rng, mean, n):
    """Ratings as judges give them: whole numbers, skewed, within 1 to 10."""
    return np.clip(np.round(rng.normal(mean, 2.5, n)), 1, 10).tolist()


def expected(mean):
    """The mean of such ratings, exactly."""
    edges = np.arange(0.5, 11.0)
    inner = np.diff(stats.norm.cdf(edges, mean, 2.5))
    inner[0] += stats.norm.cdf(0.5, mean, 2.5)
    inner[-1] += stats.norm.sf(10.5, mean, 2.5)
    return float(inner @ np.arange(1, 11))


@pytest.fixture
def few_replicates(monkeypatch):
    monkeypatch.setattr(statistics, "REPLICATES", 1000)


def test_a_cell_of_thirty_is_covered(few_replicates):
    share = covered(lambda rng: [ratings(rng, 4.0, 30)], expected(4.0), 1000)
    assert 0.93 <= share <= 0.97, share


def test_a_macro_average_of_five_cells_is_covered(few_replicates):
    means = (2.0, 4.0, 5.0, 6.0, 8.0)
    share = covered(lambda rng: [ratings(rng, m, 30) for m in means], np.mean([expected(m) for m in means]), 300)
    assert 0.93 <= share <= 0.97, share


def test_paired_differences_are_covered(few_replicates):
    def draw(rng):
        base = rng.normal(5, 2, 30)
        return [list(zip((base + rng.normal(0.4, 1, 30)).tolist(), base.tolist()))]

    hits = 0
    for seed in range(800):
        result = statistics.paired_difference(draw(np.random.default_rng(seed)), seed).difference
        hits += result.low <= 0.4 <= result.high
    assert 0.93 <= hits / 800 <= 0.97, hits / 800


def test_seeds_and_questions_are_covered(monkeypatch):
    """Questions vary, and so do the models that five seeds train."""
    monkeypatch.setattr(statistics, "REPLICATES", 600)
    hits = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values = rng.normal(0, 1, (1, 60)) + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.5, (5, 60))
        result = statistics.crossed_interval(values, seed)
        hits += result.low <= 0 <= result.high
    assert 0.93 <= hits / 400 <= 0.97, hits / 400


def test_a_single_value_has_no_interval():
    assert statistics.interval([[3.0]]) == statistics.Interval(3.0, None, None, 1)
    assert statistics.interval([[3.0], [1.0, 2.0]]).low is None
    assert statistics.interval([[3.0, 3.0], [1.0, 1.0]]).mean == 2.0  # of the groups' means


def test_wins_ties_and_losses():
    result = statistics.paired_difference([[(5.0, 3.0), (4.0, 4.0)], [(1.0, 2.0)]])
    assert (result.wins, result.ties, result.losses) == (1, 1, 1)
    assert result.difference.mean == pytest.approx((1.0 + -1.0) / 2)


def test_agreement_against_scipy_and_by_hand():
    rng = np.random.default_rng(0)
    a = rng.integers(1, 11, 80).astype(float)
    b = np.clip(a + rng.integers(-2, 3, 80), 1, 10)
    result = statistics.agreement(a.tolist(), b.tolist())
    assert result.pearson == pytest.approx(stats.pearsonr(a, b)[0])
    assert result.spearman == pytest.approx(stats.spearmanr(a, b)[0])
    assert result.mean_difference == pytest.approx(np.mean(a - b))
    # 2 x 2, 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5.
    one = [1.0] * 25 + [2.0] * 25
    other = [1.0] * 20 + [2.0] * 5 + [1.0] * 10 + [2.0] * 15
    assert statistics.agreement(one, other).kappa == pytest.approx(0.4)
    assert statistics.agreement(one, other).weighted_kappa == pytest.approx(0.4)
    # Quadratic weights by their definition: 1 - E[(a-b)^2] / E[(a-b')^2] with b' independent of a.
    chance = np.mean(np.subtract.outer(a, b) ** 2)
    assert result.weighted_kappa == pytest.approx(1 - np.mean((a - b) ** 2) / chance)


def test_agreement_that_is_not_defined():
    result = statistics.agreement([5.0, 5.0], [5.0, 5.0])
    assert (result.pearson, result.spearman, result.kappa) == (None, None, None)
    assert statistics.agreement([], []).n == 0
