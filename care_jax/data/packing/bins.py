"""One microbatch while it is being packed, and the clusters of responses that go into it. Lengths only."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from care_jax.data.packing.batch import BatchShape


@dataclass(slots=True)
class Cluster:
    """Responses to one question that one microbatch must hold together.

    prompt: tokens of the prompt. responses, lengths: response ids and their completion tokens. pairs, lists: how many
    pairs and lists it has. index: number of the part that it was made from. parts: the clusters that it was joined
    from; it is divided into these if it does not fit.
    """

    question: int
    prompt: int
    responses: list[int]
    lengths: list[int]
    pairs: int = 0
    lists: int = 0
    index: int = -1
    parts: "list[Cluster]" = field(default_factory=list)

    def size(self, shape: BatchShape) -> int:
        """Its tokens in one row."""
        copies = 1 if shape.share_prompts and shape.packing else len(self.responses)
        return sum(self.lengths) + copies * self.prompt


class Bin:
    """One microbatch while it is being packed.

    free: free tokens of each row; total: their sum. prompts: questions with a prompt in each row. slots: slot by
    (question, response id). placed: (question, response id, completion tokens, row) by slot. clusters: each with the
    slots of its responses.
    """

    def __init__(self, shape: BatchShape):
        self.shape = shape
        self.free = [shape.row_length] * shape.rows
        self.total = shape.row_length * shape.rows
        self.prompts: list[set[int]] = [set() for _ in range(shape.rows)]
        self.prompt_lengths: dict[int, int] = {}
        self.slots: dict[tuple[int, int], int] = {}
        self.placed: list[tuple[int, int, int, int]] = []
        self.clusters: list[tuple[Cluster, list[int]]] = []
        self.completion_tokens = self.pairs = self.lists = 0

    def copy(self) -> "Bin":
        other = copy.copy(self)
        other.free, other.placed, other.clusters = list(self.free), list(self.placed), list(self.clusters)
        other.prompts = [set(prompts) for prompts in self.prompts]
        other.prompt_lengths, other.slots = dict(self.prompt_lengths), dict(self.slots)
        return other

    def fit(self, cluster: Cluster, only_row: int | None = None) -> list[tuple[int, int]] | None:
        """(position in the cluster, row) of each response to add; None if the cluster does not fit.

        only_row: the one row that may take it.
        """
        question, shape = cluster.question, self.shape
        if shape.share_responses and self.slots:
            new = [i for i, response in enumerate(cluster.responses) if (question, response) not in self.slots]
        else:
            new = list(range(len(cluster.responses)))
        tokens = sum(cluster.lengths[i] for i in new)
        if (
            len(self.placed) + len(new) > shape.responses
            or self.completion_tokens + tokens > shape.completion_tokens
            or self.pairs + cluster.pairs > shape.pairs
            or self.lists + cluster.lists > shape.lists
            or tokens > self.total
        ):
            return None
        if not shape.packing:
            empty = [row for row, free in enumerate(self.free) if free == shape.row_length]
            if len(new) > len(empty) or any(cluster.prompt + cluster.lengths[i] > shape.row_length for i in new):
                return None
            return list(zip(new, empty))
        if only_row is not None:
            return [(i, only_row) for i in new] if cluster.size(shape) <= self.free[only_row] else None
        if not shape.share_prompts:
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

    def add(self, cluster: Cluster, only_row: int | None = None) -> bool:
        """Adds a cluster in the rows that `fit` returns; returns whether it fits."""
        rows = self.fit(cluster, only_row)
        if rows is None:
            return False
        question, slots = cluster.question, [-1] * len(cluster.responses)
        self.prompt_lengths[question] = cluster.prompt
        for i, row in rows:
            response, length = cluster.responses[i], cluster.lengths[i]
            cost = length
            if not self.shape.share_prompts or question not in self.prompts[row]:
                cost += cluster.prompt
                self.prompts[row].add(question)
            self.free[row] -= cost
            self.total -= cost
            self.completion_tokens += length
            slots[i] = len(self.placed)
            self.placed.append((question, response, length, row))
            if self.shape.share_responses:
                self.slots[question, response] = slots[i]
        for i, slot in enumerate(slots):
            if slot < 0:
                slots[i] = self.slots[question, cluster.responses[i]]
        self.pairs += cluster.pairs
        self.lists += cluster.lists
        self.clusters.append((cluster, slots))
        return True
