"""Best fit of clusters into microbatches, and a search for subsets that fill rows where best fit leaves gaps."""

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.bins import Bin, Cluster

_TRIES = 12  # subsets tried for the rest of one microbatch, the fullest first
_MOST_SEARCHED = 1024  # clusters; with more, best fit leaves few gaps and the search would take too long
_SLACK = 0.01  # fraction of a row that may stay empty if a subset fills the rest


@dataclass(eq=False)
class TooLarge(Exception):
    """An empty microbatch cannot hold this cluster."""

    cluster: Cluster


def pack(clusters: Sequence[Cluster], shape: BatchShape, enough: int = 1) -> list[Bin]:
    """The fewest microbatches found; the same for the same clusters in the same order. Raises TooLarge.

    enough: the number of microbatches below which the caller gains nothing.
    """
    undivided: list[Cluster] = []
    divided: set[int] = set()
    for cluster in clusters:
        if not cluster.parts or Bin(shape).fit(cluster) is not None:
            undivided.append(cluster)
        else:
            undivided += cluster.parts
            divided.add(cluster.question)
    sizes = [cluster.size(shape) for cluster in undivided]
    least = -(-sum(sizes) // (shape.rows * shape.row_length))
    by_size = [undivided[i] for i in sorted(range(len(undivided)), key=lambda i: -sizes[i])]
    best = _best_fit(by_size, shape, divided)
    improvable = len(best) > max(least, enough) and not divided and shape.packing
    if improvable and len(by_size) <= _MOST_SEARCHED:
        other = _search(by_size, shape)
        best = other if len(other) < len(best) else best
    return best


def _best_fit(clusters: Sequence[Cluster], shape: BatchShape, divided: set[int]) -> list[Bin]:
    """Puts each cluster into the fullest microbatch that has room for it. divided: questions in several clusters."""
    bins: list[Bin] = []
    by_space: list[tuple[int, int]] = []  # (free tokens, index) of every bin, fullest first
    for cluster in clusters:
        # Some responses of a divided question may already be there and need no space.
        least = 0 if shape.share_responses and cluster.question in divided else sum(cluster.lengths)
        for place in range(bisect_left(by_space, (least, -1)), len(by_space)):
            number = by_space[place][1]
            if bins[number].add(cluster):
                by_space.pop(place)
                break
        else:
            number = len(bins)
            bins.append(Bin(shape))
            if not bins[number].add(cluster):
                raise TooLarge(cluster)
        insort(by_space, (bins[number].total, number))
    return bins


def _search(by_size: Sequence[Cluster], shape: BatchShape) -> list[Bin]:
    """Fills one microbatch after the other, each from the largest cluster that is left.

    Each row takes those of the other clusters whose sizes fill it almost completely. What then stays free over several
    rows takes the best subset found, divided over them.
    """
    left = list(by_size)
    sizes = [cluster.size(shape) for cluster in left]
    bins: list[Bin] = []
    while left:
        bin_ = Bin(shape)
        if not bin_.add(left[0]):
            raise TooLarge(left[0])
        _remove([0], left, sizes)
        # A begun row that no subset fills takes a part of a cluster; the other part needs space in another row.
        begun = [row for row, free in enumerate(bin_.free) if free < shape.row_length]
        empty = [row for row, free in enumerate(bin_.free) if free == shape.row_length]
        for row in begun:
            bin_ = _fill_row(bin_, row, left, sizes)
        if any(bin_.free[row] > _SLACK * shape.row_length for row in begun):
            bin_ = _fill_rows(bin_, left, sizes)
        for row in empty:
            bin_ = _fill_row(bin_, row, left, sizes)
        bin_ = _fill_rows(bin_, left, sizes)
        for i in range(len(left)):
            if sizes[i] <= bin_.total and bin_.add(left[i]):
                sizes[i] = 0
        _remove([i for i, size in enumerate(sizes) if size == 0], left, sizes)
        bins.append(bin_)
    return bins


def _remove(indices: Sequence[int], left: list[Cluster], sizes: list[int]) -> None:
    for i in sorted(indices, reverse=True):
        left.pop(i)
        sizes.pop(i)


def _fill_row(bin_: Bin, row: int, left: list[Cluster], sizes: list[int]) -> Bin:
    """Fills one row with undivided clusters if some fill it almost completely; removes them from `left`."""
    subset = next(_subsets(sizes, bin_.free[row], 1), ())
    if bin_.free[row] - sum(sizes[i] for i in subset) > _SLACK * bin_.shape.row_length:
        return bin_
    filled = _with_clusters(bin_, [left[i] for i in subset], row)
    if filled is not None:
        _remove(subset, left, sizes)
    return filled or bin_


def _fill_rows(bin_: Bin, left: list[Cluster], sizes: list[int]) -> Bin:
    """Adds the first of a few subsets that fits when it is divided over rows; removes its clusters from `left`."""
    step = max(1, bin_.shape.row_length // 128)
    for subset in itertools.islice(_subsets(sizes, bin_.total, step), _TRIES):
        filled = _with_clusters(bin_, [left[i] for i in subset])
        if filled is not None:
            _remove(subset, left, sizes)
            return filled
    return bin_


def _subsets(sizes: Sequence[int], space: int, step: int) -> Iterator[tuple[int, ...]]:
    """Yields indices of sizes: those with the largest sum up to `space`, then with the largest sum that is less by at
    least `step`, and so on. Among equal sums the first (larger) sizes are preferred.
    """
    # Bit n of reached[i]: some of the first i sizes have the sum n.
    reached = [1]
    mask = (1 << (space + 1)) - 1
    for size in sizes:
        reached.append((reached[-1] | reached[-1] << size) & mask)
    sums = reached[-1]
    while sums > 1:
        rest = sums.bit_length() - 1
        sums &= (1 << max(0, rest - step + 1)) - 1
        subset = []
        for i in range(len(sizes), 0, -1):
            if not reached[i - 1] >> rest & 1:
                subset.append(i - 1)
                rest -= sizes[i - 1]
        yield tuple(reversed(subset))


def _with_clusters(bin_: Bin, clusters: Sequence[Cluster], row: int | None = None) -> Bin | None:
    """A copy of the bin with all these clusters added (in one row, if it is named); None if they do not fit."""
    copy = bin_.copy()
    return copy if all(copy.add(cluster, row) for cluster in clusters) else None
