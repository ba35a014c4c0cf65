"""One microbatch while it is being packed, and the clusters of responses that go into it. Lengths only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Capacity(NamedTuple):
    """What one microbatch holds at most: rows of row_length tokens, responses, completion tokens, pairs, lists.

    one_per_row: each sequence has a row of its own. share_prompts: a prompt comes once per row. merge: a response
    that is already in the microbatch is not added again.
    """

    rows: int
    row_length: int
    responses: int
    completions: int
    pairs: int
    groups: int
    one_per_row: bool = False
    share_prompts: bool = True
    merge: bool = True


@dataclass(slots=True)
class Cluster:
    """Responses to one question that one microbatch must hold together.

    prompt: tokens of the prompt. responses, lengths: response ids and their completion tokens. pairs, groups: how many
    pairs and lists it has. index: of the part that it was made from. parts: the clusters that it was joined from; it is
    divided into these if it does not fit.
    """

    question: int
    prompt: int
    responses: list[int]
    lengths: list[int]
    pairs: int = 0
    groups: int = 0
    index: int = -1
    parts: "list[Cluster]" = field(default_factory=list)

    def size(self, capacity: Capacity) -> int:
        """Its tokens in one row."""
        copies = 1 if capacity.share_prompts and not capacity.one_per_row else len(self.responses)
        return sum(self.lengths) + copies * self.prompt


class Bin:
    """One microbatch while it is being packed.

    free: free tokens of each row; total: their sum. prompts: questions with a prompt in each row. slots: slot by
    (question, response id). placed: (question, response id, completion tokens, row) by slot. clusters: each with the
    slots of its responses.
    """

    __slots__ = (
        *("clusters", "completions", "free", "groups", "pairs"),
        *("placed", "prompt_lengths", "prompts", "slots", "total"),
    )

    def __init__(self, capacity: Capacity):
        self.free = [capacity.row_length] * capacity.rows
        self.total = capacity.row_length * capacity.rows
        self.prompts: list[set[int]] = [set() for _ in range(capacity.rows)]
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

    def fit(self, cluster: Cluster, capacity: Capacity, only_row: int | None = None) -> list[tuple[int, int]] | None:
        """(position in the cluster, row) of each response to add; None if the cluster does not fit.

        only_row: the one row that may take it.
        """
        question = cluster.question
        if capacity.merge and self.slots:
            new = [i for i, response in enumerate(cluster.responses) if (question, response) not in self.slots]
        else:
            new = list(range(len(cluster.responses)))
        tokens = sum(cluster.lengths[i] for i in new)
        if (
            len(self.placed) + len(new) > capacity.responses
            or self.completions + tokens > capacity.completions
            or self.pairs + cluster.pairs > capacity.pairs
            or self.groups + cluster.groups > capacity.groups
            or tokens > self.total
        ):
            return None
        if capacity.one_per_row:
            empty = [row for row, free in enumerate(self.free) if free == capacity.row_length]
            if len(new) > len(empty) or any(cluster.prompt + cluster.lengths[i] > capacity.row_length for i in new):
                return None
            return list(zip(new, empty))
        if only_row is not None:
            return [(i, only_row) for i in new] if cluster.size(capacity) <= self.free[only_row] else None
        if not capacity.share_prompts:
            return self._spread(cluster, new, shared=False, fullest=True)
        best, least = -1, -1
        for row, free in enumerate(self.free):
            rest = free - tokens - (0 if question in self.prompts[row] else cluster.prompt)
            if rest >= 0 and (best < 0 or rest < least):
                best, least = row, rest
        if best >= 0:
            return [(i, best) for i in new]
        if len(self.free) == 1 or tokens + cluster.prompt > self.total:
            return None
        return self._spread(cluster, new, True, False) or self._spread(cluster, new, True, True)

    def _spread(
        self, cluster: Cluster, new: Sequence[int], shared: bool, fullest: bool
    ) -> list[tuple[int, int]] | None:
        """Divides a cluster over several rows, the longest response first.

        A response goes into the fullest row that has its prompt and room for it, else into a row with room for both:
        the fullest or the emptiest of these.
        """
        free = list(self.free)
        has_prompt = [shared and cluster.question in prompts for prompts in self.prompts]
        placed = []
        for i in sorted(new, key=lambda i: -cluster.lengths[i]):
            length = cluster.lengths[i]
            rows = [row for row, space in enumerate(free) if has_prompt[row] and space >= length]
            if rows:
                row = min(rows, key=free.__getitem__)
                free[row] -= length
            else:
                both = length + cluster.prompt
                rows = [row for row, space in enumerate(free) if not has_prompt[row] and space >= both]
                if not rows:
                    return None
                row = (min if fullest else max)(rows, key=free.__getitem__)
                free[row] -= both
                has_prompt[row] = shared
            placed.append((i, row))
        return placed

    def add(self, cluster: Cluster, rows: list[tuple[int, int]], capacity: Capacity) -> None:
        """Adds a cluster in the rows that `fit` returned."""
        question, slots = cluster.question, [-1] * len(cluster.responses)
        self.prompt_lengths[question] = cluster.prompt
        for i, row in rows:
            response, length = cluster.responses[i], cluster.lengths[i]
            cost = length
            if not capacity.share_prompts or question not in self.prompts[row]:
                cost += cluster.prompt
                self.prompts[row].add(question)
            self.free[row] -= cost
            self.total -= cost
            self.completions += length
            slots[i] = len(self.placed)
            self.placed.append((question, response, length, row))
            if capacity.merge:
                self.slots[question, response] = slots[i]
        for i, slot in enumerate(slots):
            if slot < 0:
                slots[i] = self.slots[question, cluster.responses[i]]
        self.pairs += cluster.pairs
        self.groups += cluster.groups
        self.clusters.append((cluster, slots))
