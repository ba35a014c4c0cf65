"""Means with intervals, paired differences, and the agreement of two raters.

Intervals are bootstrap percentiles, corrected for small samples: n-1 of n values are drawn, so that the spread of the
means is that of an unbiased variance, and the percentiles are those of Student's t (Hesterberg 2015, "What Teachers
Should Know About the Bootstrap", sections 3.2 and 5.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

REPLICATES = 4000
LEVEL = 0.95  # of all intervals


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its interval. low, high: None if a group has a single value. n: number of values."""

    mean: float
    low: float | None
    high: float | None
    n: int


def interval(groups: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Returns the mean of the groups' means and its interval; each group is resampled by itself.

    groups: one group of all values for a plain mean, or one per cell (culture x category) for a macro average.
    """
    arrays = [np.asarray(group, np.float64) for group in groups if len(group)]
    count = sum(len(array) for array in arrays)
    if not arrays:
        return Interval(float("nan"), None, None, 0)
    mean = float(np.mean([array.mean() for array in arrays]))
    if any(len(array) < 2 for array in arrays):
        return Interval(mean, None, None, count)
    draws = np.mean([_means(array, seed + 7919 * number) for number, array in enumerate(arrays)], axis=0)
    low, high = _percentiles(draws, count - len(arrays))
    return Interval(mean, low, high, count)


def _means(values: Float[np.ndarray, " n"], seed: int) -> Float[np.ndarray, " b"]:
    """Returns REPLICATES means, each of n-1 values drawn with replacement from the n."""
    size = len(values)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(size - 1, np.full(size, 1 / size), size=REPLICATES)
    return counts @ values / (size - 1)


def _percentiles(draws: Float[np.ndarray, " b"], freedom: int) -> tuple[float, float]:
    """Returns the ends of the interval. freedom: degrees of freedom of Student's t."""
    from scipy import special

    tail = float(special.ndtr(-special.stdtrit(max(freedom, 1), (1 + LEVEL) / 2)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def crossed_interval(values: Float[np.ndarray, "s q"], seed: int = 0) -> Interval:
    """Returns the mean over seeds and questions, and its interval; rows and columns are resampled independently.

    values: [seeds, questions], the score of each seed's model on each question. With one seed the interval is over the
    questions alone. With few seeds, the estimate of the spread between them is itself uncertain.
    """
    seeds, questions = values.shape
    if questions < 2:
        return Interval(float(values.mean()), None, None, values.size)
    rng = np.random.default_rng(seed)
    # n seeds are drawn of n: n-1 of 2 would double the weight of their variance. Questions are drawn as in `interval`.
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=REPLICATES) / seeds
    columns = rng.multinomial(questions - 1, np.full(questions, 1 / questions), size=REPLICATES) / (questions - 1)
    draws = np.einsum("bs,sq,bq->b", rows, values, columns, optimize=True)
    low, high = _percentiles(draws, questions - 1)
    return Interval(float(values.mean()), low, high, values.size)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The difference between a system and a base, over the items that both answered, and how often each is better."""

    difference: Interval
    wins: int
    ties: int
    losses: int


def paired_difference(groups: Sequence[Sequence[tuple[float, float]]], seed: int = 0) -> PairedDifference:
    """Returns the difference of the means. groups: (system, base) values of the shared items of each cell."""
    pairs = [pair for group in groups for pair in group]
    differences = [[system - base for system, base in group] for group in groups if group]
    return PairedDifference(
        interval(differences, seed),
        sum(system > base for system, base in pairs),
        sum(system == base for system, base in pairs),
        sum(system < base for system, base in pairs),
    )


@dataclass(frozen=True, slots=True)
class RaterAgreement:
    """The agreement of two raters on n items. A measure is None if it is undefined (a rater without variance)."""

    n: int
    pearson: float | None
    spearman: float | None
    kappa: float | None
    weighted_kappa: float | None
    mean_difference: float


def agreement(a: Sequence[float], b: Sequence[float]) -> RaterAgreement:
    """Returns Pearson's and Spearman's correlation (mean rank for ties) and Cohen's kappa, plain and with quadratic
    weights, of two raters on the same scale.

    For kappa, ratings are rounded to whole numbers. mean_difference is that of a - b.
    """
    if len(a) != len(b):
        raise ValueError(f"agreement: {len(a)} and {len(b)} ratings")
    if not a:
        return RaterAgreement(0, None, None, None, None, float("nan"))
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ranks = [_ranks(values) for values in (x, y)]
    rounded = [np.floor(values + 0.5).astype(int) for values in (x, y)]
    return RaterAgreement(
        len(a),
        _correlation(x, y),
        _correlation(*ranks),
        _kappa(*rounded, weighted=False),
        _kappa(*rounded, weighted=True),
        float(np.mean(x - y)),
    )


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns ranks from 1; equal values share their mean rank."""
    _, indices, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[indices]


def _correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return None if spread == 0 else float(x @ y) / spread


def _kappa(x: Int[np.ndarray, " n"], y: Int[np.ndarray, " n"], *, weighted: bool) -> float | None:
    """Returns 1 - observed disagreement / disagreement expected by chance (Cohen 1960, 1968)."""
    low, high = int(min(x.min(), y.min())), int(max(x.max(), y.max()))
    size = high - low + 1
    table = np.zeros((size, size))
    np.add.at(table, (x - low, y - low), 1.0)
    table /= len(x)
    distance = np.subtract.outer(np.arange(size), np.arange(size)).astype(np.float64)
    cost = distance**2 if weighted else (distance != 0).astype(np.float64)
    chance = float(np.sum(cost * np.outer(table.sum(1), table.sum(0))))
    return None if chance == 0 else 1.0 - float(np.sum(cost * table)) / chance
