"""Best fit of clusters (a question's responses that must stay together) into microbatches of rows. Lengths only."""

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_TRIES = 12  # subsets tried for the rest of one microbatch, the fullest first
_MANY = 1024  # clusters; of more, best fit alone leaves little over, and is what one can wait for
_SLACK = 0.01  # of a row, that may stay empty when a subset fills it


class Capacity(NamedTuple):
    """What one microbatch holds at most: rows of row_length tokens, responses, completion tokens, pairs, lists.

    one_a_row: every sequence alone in its row. share_prompts: a prompt stands once in a row. merge: a response that
    is there already is not laid out again.
    """

    rows: int
    row_length: int
    responses: int
    completions: int
    pairs: int
    groups: int
    one_a_row: bool = False
    share_prompts: bool = True
    merge: bool = True


@dataclass(slots=True)
class Cluster:
    """Responses behind one prompt that one microbatch must hold together.

    names, lengths: response ids and their completion tokens. uses: the units it serves. parts: what it may be divided
    into where it does not fit as a whole.
    """

    question: int
    prompt: int
    names: list[int]
    lengths: list[int]
    pairs: int = 0
    groups: int = 0
    uses: list[int] = field(default_factory=list)
    parts: "list[Cluster]" = field(default_factory=list)

    def size(self, room: Capacity) -> int:
        """Tokens it takes in one row."""
        copies = 1 if room.share_prompts and not room.one_a_row else len(self.names)
        return sum(self.lengths) + copies * self.prompt


class Bin:
    """One microbatch being filled. placed: (question, response id, length, row) by slot."""

    __slots__ = (
        "clusters",
        "completions",
        "free",
        "groups",
        "pairs",
        "placed",
        "prompt_lengths",
        "prompts",
        "slots",
        "total",
    )

    def __init__(self, room: Capacity):
        self.free = [room.row_length] * room.rows
        self.total = room.row_length * room.rows
        self.prompts: list[set[int]] = [set() for _ in range(room.rows)]
        self.prompt_lengths: dict[int, int] = {}
        self.slots: dict[tuple[int, int], int] = {}
        self.placed: list[tuple[int, int, int, int]] = []
        self.clusters: list[tuple[Cluster, list[int]]] = []
        self.completions = self.pairs = self.groups = 0

    def copy(self) -> "Bin":
        other = Bin.__new__(Bin)
        other.free, other.total, other.placed = list(self.free), self.total, list(self.placed)
        other.prompts = [set(prompts) for prompts in self.prompts]
        other.prompt_lengths, other.slots = dict(self.prompt_lengths), dict(self.slots)
        other.clusters = list(self.clusters)
        other.completions, other.pairs, other.groups = self.completions, self.pairs, self.groups
        return other

    def fit(self, cluster: Cluster, room: Capacity, only: int | None = None) -> list[tuple[int, int]] | None:
        """(position in the cluster, row) of every response to add, or None where there is no room.

        only: the one row that may take it.
        """
        question = cluster.question
        if room.merge and self.slots:
            new = [i for i, name in enumerate(cluster.names) if (question, name) not in self.slots]
        else:
            new = list(range(len(cluster.names)))
        tokens = sum(cluster.lengths[i] for i in new)
        if (
            len(self.placed) + len(new) > room.responses
            or self.completions + tokens > room.completions
            or self.pairs + cluster.pairs > room.pairs
            or self.groups + cluster.groups > room.groups
            or tokens > self.total
        ):
            return None
        if room.one_a_row:
            empty = [row for row, free in enumerate(self.free) if free == room.row_length]
            if len(new) > len(empty) or any(cluster.prompt + cluster.lengths[i] > room.row_length for i in new):
                return None
            return list(zip(new, empty))
        if only is not None:
            return [(i, only) for i in new] if cluster.size(room) <= self.free[only] else None
        if not room.share_prompts:
            return self._spread(cluster, new, shared=False, fullest=True)
        best, left = -1, -1
        for row, free in enumerate(self.free):
            rest = free - tokens - (0 if question in self.prompts[row] else cluster.prompt)
            if rest >= 0 and (best < 0 or rest < left):
                best, left = row, rest
        if best >= 0:
            return [(i, best) for i in new]
        if len(self.free) == 1 or tokens + cluster.prompt > self.total:
            return None
        return self._spread(cluster, new, True, False) or self._spread(cluster, new, True, True)

    def _spread(
        self, cluster: Cluster, new: Sequence[int], shared: bool, fullest: bool
    ) -> list[tuple[int, int]] | None:
        """Over several rows, longest response first, into the fullest row that has its prompt and holds it; else into
        another (the fullest or the emptiest) that takes prompt and response.
        """
        free = list(self.free)
        opened = [shared and cluster.question in prompts for prompts in self.prompts]
        found = []
        for i in sorted(new, key=lambda i: -cluster.lengths[i]):
            length = cluster.lengths[i]
            rows = [row for row, space in enumerate(free) if opened[row] and space >= length]
            if rows:
                row = min(rows, key=free.__getitem__)
                free[row] -= length
            else:
                whole = length + cluster.prompt
                rows = [row for row, space in enumerate(free) if not opened[row] and space >= whole]
                if not rows:
                    return None
                row = (min if fullest else max)(rows, key=free.__getitem__)
                free[row] -= whole
                opened[row] = shared
            found.append((i, row))
        return found

    def add(self, cluster: Cluster, rows: list[tuple[int, int]], room: Capacity) -> None:
        """Takes the cluster in, where `fit` said."""
        question, slots = cluster.question, [-1] * len(cluster.names)
        self.prompt_lengths[question] = cluster.prompt
        for i, row in rows:
            name, length = cluster.names[i], cluster.lengths[i]
            cost = length
            if not room.share_prompts or question not in self.prompts[row]:
                cost += cluster.prompt
                self.prompts[row].add(question)
            self.free[row] -= cost
            self.total -= cost
            self.completions += length
            slots[i] = len(self.placed)
            self.placed.append((question, name, length, row))
            if room.merge:
                self.slots[question, name] = slots[i]
        for i, slot in enumerate(slots):
            if slot < 0:
                slots[i] = self.slots[question, cluster.names[i]]
        self.pairs += cluster.pairs
        self.groups += cluster.groups
        self.clusters.append((cluster, slots))


class TooLarge(Exception):
    """A cluster that not even an empty microbatch holds."""

    def __init__(self, cluster: Cluster):
        super().__init__(cluster)
        self.cluster = cluster


def pack(clusters: Sequence[Cluster], room: Capacity, enough: int = 1) -> list[Bin]:
    """The fewest microbatches found, the same for the same clusters in the same order. Raises TooLarge.

    enough: so many are as good as fewer.
    """
    whole: list[Cluster] = []
    divided: set[int] = set()
    for cluster in clusters:
        if not cluster.parts or Bin(room).fit(cluster, room) is not None:
            whole.append(cluster)
        else:
            whole += cluster.parts
            divided.add(cluster.question)
    sizes = [cluster.size(room) for cluster in whole]
    least = -(-sum(sizes) // (room.rows * room.row_length))
    by_size = [whole[i] for i in sorted(range(len(whole)), key=lambda i: -sizes[i])]
    best = _best_fit(by_size, room, divided)
    if len(best) > max(least, enough) and not divided and not room.one_a_row and len(by_size) <= _MANY:
        other = _complete(by_size, room)
        best = other if len(other) < len(best) else best
    return best


def _complete(by_size: Sequence[Cluster], room: Capacity) -> list[Bin]:
    """Microbatch by microbatch: the largest cluster left, then into each row those of the others whose sizes fill it
    to the last tokens, then into what is left over several rows the best that can be found.
    """
    left = list(by_size)
    sizes = [cluster.size(room) for cluster in left]
    bins: list[Bin] = []

    while left:
        bin_ = Bin(room)
        rows = bin_.fit(left[0], room)
        if rows is None:
            raise TooLarge(left[0])
        bin_.add(left[0], rows, room)
        _take([0], left, sizes)
        # A row begun that no subset fills takes a part of a cluster, the other part of which needs room elsewhere.
        begun = [row for row, free in enumerate(bin_.free) if free < room.row_length]
        others = [row for row, free in enumerate(bin_.free) if free == room.row_length]
        for row in begun:
            bin_ = _fill_row(bin_, row, left, sizes, room)
        if any(bin_.free[row] > _SLACK * room.row_length for row in begun):
            bin_ = _fill_rows(bin_, left, sizes, room)
        for row in others:
            bin_ = _fill_row(bin_, row, left, sizes, room)
        bin_ = _fill_rows(bin_, left, sizes, room)
        for i in range(len(left)):
            rows = bin_.fit(left[i], room) if sizes[i] <= bin_.total else None
            if rows is not None:
                bin_.add(left[i], rows, room)
                sizes[i] = 0
        _take([i for i, size in enumerate(sizes) if size == 0], left, sizes)
        bins.append(bin_)
    return bins


def _take(indices: Sequence[int], left: list[Cluster], sizes: list[int]) -> None:
    for i in sorted(indices, reverse=True):
        left.pop(i)
        sizes.pop(i)


def _fill_row(bin_: Bin, row: int, left: list[Cluster], sizes: list[int], room: Capacity) -> Bin:
    """Fills one row with whole clusters, if some of those left fill it to the last tokens; takes them from `left`."""
    subset = next(_subsets(sizes, bin_.free[row], 1), ())
    if bin_.free[row] - sum(sizes[i] for i in subset) > _SLACK * room.row_length:
        return bin_
    filled = _filled(bin_, [left[i] for i in subset], room, row)
    if filled is None:
        return bin_
    _take(subset, left, sizes)
    return filled


def _fill_rows(bin_: Bin, left: list[Cluster], sizes: list[int], room: Capacity) -> Bin:
    """Fills the microbatch as well as a few subsets allow, divided over rows; takes them from `left`."""
    step = max(1, room.row_length // 128)
    for subset in itertools.islice(_subsets(sizes, bin_.total, step), _TRIES):
        filled = _filled(bin_, [left[i] for i in subset], room)
        if filled is not None:
            _take(subset, left, sizes)
            return filled
    return bin_


def _subsets(sizes: Sequence[int], space: int, step: int) -> Iterator[tuple[int, ...]]:
    """Indices of sizes with the largest sum that space holds, then of the largest that is `step` less, ...; of those
    with equal sums the first (the larger) sizes are preferred.
    """
    # Bit n of reached[i]: some of the first i have the sum n.
    reached = [1]
    whole = (1 << (space + 1)) - 1
    for size in sizes:
        reached.append((reached[-1] | reached[-1] << size) & whole)
    sums = reached[-1]
    while sums > 1:
        rest = sums.bit_length() - 1
        sums &= (1 << max(0, rest - step + 1)) - 1
        taken = []
        for i in range(len(sizes), 0, -1):
            if not reached[i - 1] >> rest & 1:
                taken.append(i - 1)
                rest -= sizes[i - 1]
        yield tuple(reversed(taken))


def _filled(bin_: Bin, clusters: Sequence[Cluster], room: Capacity, row: int | None = None) -> Bin | None:
    """A copy of the bin with all of these in it (in this row, if one is given), or None."""
    copy = bin_.copy()
    for cluster in clusters:
        rows = copy.fit(cluster, room, row)
        if rows is None:
            return None
        copy.add(cluster, rows, room)
    return copy


def _best_fit(clusters: Sequence[Cluster], room: Capacity, divided: set[int]) -> list[Bin]:
    bins: list[Bin] = []
    by_room: list[tuple[int, int]] = []  # (free tokens, number) of every bin, fullest first
    for cluster in clusters:
        # Of a question that was divided, responses may be there already and take no room.
        least = 0 if room.merge and cluster.question in divided else sum(cluster.lengths)
        for place in range(bisect_left(by_room, (least, -1)), len(by_room)):
            number = by_room[place][1]
            rows = bins[number].fit(cluster, room)
            if rows is not None:
                by_room.pop(place)
                break
        else:
            number = len(bins)
            bins.append(Bin(room))
            rows = bins[number].fit(cluster, room)
            if rows is None:
                raise TooLarge(cluster)
        bins[number].add(cluster, rows, room)
        insort(by_room, (bins[number].total, number))
    return bins
