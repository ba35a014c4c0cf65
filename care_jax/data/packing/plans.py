"""The plan of one step: which microbatch, row and slot each unit gets.

A plan depends on lengths only. So every host makes the same one and fills (`fill.fill`) only the rows that it owns.
Units become clusters of responses, which one microbatch must hold together; `search` puts clusters into microbatches.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from care_jax.data.corpus import Corpus, SequenceId
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.bins import Bin, Cluster
from care_jax.data.packing.positions import Pairs, Responses, Segments, lay_out
from care_jax.data.packing.search import TooLarge, pack
from care_jax.data.preferences import Unit
from care_jax.errors import UserError

_WINDOW = 4096  # sequences packed at once by `plan_responses`; the time of best fit is quadratic in their number


class ResponseList(NamedTuple):
    """A unit of the view `lists`. slots: slots of its responses in the microbatch."""

    microbatch: int
    slots: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class StepPlan:
    """Where everything in a step is placed. count: microbatches that are not empty."""

    shape: BatchShape
    count: int
    responses: Responses
    segments: Segments
    pairs: Pairs
    lists: tuple[ResponseList, ...] = ()
    mismatched: "StepPlan | None" = None

    @property
    def tokens(self) -> int:
        """Token slots that are filled."""
        return int(self.segments.length.sum())

    @property
    def efficiency(self) -> float:
        """The fraction of the token slots of non-empty microbatches that is filled."""
        return self.tokens / max(1, self.count * self.shape.rows * self.shape.row_length)


# --- the plan of units -----------------------------------------------------------------------------------------------


def plan_step(
    units: Sequence[Unit], corpus: Corpus, shape: BatchShape, mismatched_shape: BatchShape | None = None
) -> StepPlan:
    """Lays out the units of one step in the fewest microbatches found.

    Never divided over microbatches: a labelled response; a unit, if responses are shared; otherwise each single pair.
    Units of one question stay together if they fit. mismatched_shape: for KTO's mismatched completions, if needed.
    Raises UserError with the question that needs more rows than a microbatch has, and the rows it needs.
    """
    parts, merge, bins = _pack_units(units, corpus, shape)
    index_of, responses, segments = lay_out(bins, shape)
    pairs: list[tuple[int, int]] = []
    pair_weights: list[float] = []
    lists: list[ResponseList] = []
    for part, packed in zip(parts, _packed_numbers(bins, merge)):
        indices = index_of[packed].tolist()
        if part.desirable is not None:
            responses.weight[indices], responses.desirable[indices] = part.weight, part.desirable
        elif part.pairs:
            pairs += [(indices[chosen], indices[rejected]) for chosen, rejected in part.pairs]
            pair_weights += part.weights
        else:
            slots = tuple(responses.slot[indices].tolist())
            lists.append(ResponseList(int(responses.microbatch[indices[0]]), slots, part.weight))
    mismatched = None
    if mismatched_shape is not None:
        mismatched = plan_responses(corpus, mismatched_sequences(units, corpus), mismatched_shape)
    columns = Pairs.of(responses, pairs, pair_weights)
    return StepPlan(shape, len(bins), responses, segments, columns, tuple(lists), mismatched)


def count_microbatches(units: Sequence[Unit], corpus: Corpus, shape: BatchShape, known: int) -> int:
    """The microbatches that `plan_step` needs for these units, or `known` if that is more."""
    return max(known, len(_pack_units(units, corpus, shape, max(1, known))[2]))


def _pack_units(
    units: Sequence[Unit], corpus: Corpus, shape: BatchShape, enough: int = 1
) -> tuple[list[Unit], bool, list[Bin]]:
    """Returns the indivisible parts, whether several parts use one copy of a response, and the microbatches."""
    parts = indivisible_parts(units, shape)
    # Two labelled units with the same response are two examples, so each has its own copy.
    merge = shape.share_responses and not any(unit.desirable is not None for unit in units)
    clusters = join_questions(clusters_of(parts, corpus), merge)
    return parts, merge, pack_clusters(clusters, dataclasses.replace(shape, share_responses=merge), corpus, enough)


# --- the plan of single responses ------------------------------------------------------------------------------------


def plan_responses(corpus: Corpus, sequences: Sequence[SequenceId], shape: BatchShape) -> StepPlan:
    """Lays out single responses as in training rows, each as a labelled unit of weight 1.

    `plan.responses` has the order of `sequences`; its microbatch and slot say where the logps of each will be.
    """
    bins = _pack_responses(corpus, sequences, shape)
    index_of, responses, segments = lay_out(bins, shape)
    responses.weight[:] = 1
    order = index_of[np.asarray(_packed_numbers(bins, merge=False), np.int64).reshape(-1)]
    return StepPlan(shape, len(bins), responses[order], segments, Pairs.of(responses, [], []))


def mismatched_sequences(units: Sequence[Unit], corpus: Corpus) -> list[SequenceId]:
    """For each unit its question with the response of the nearest earlier unit (cyclic) that has another question key.

    Raises UserError if the units have fewer than two question keys.
    """
    keys = [corpus.key(unit.question) for unit in units]
    if len(set(keys)) < 2:
        raise UserError(
            f"batch.examples: the KL estimate needs two different questions in every step, but one of {len(units)} "
            f"units has {len(set(keys))}"
        )
    sequences: list[SequenceId] = []
    for index, unit in enumerate(units):
        distance = next(n for n in range(1, len(units)) if keys[index - n] != keys[index])
        other = units[index - distance]
        sequences.append((unit.question, corpus.response_id(other.question, other.responses[0])))
    return sequences


def count_mismatched(units: Sequence[Unit], corpus: Corpus, shape: BatchShape) -> int:
    """The microbatches that the mismatched completions of these units need."""
    return len(_pack_responses(corpus, mismatched_sequences(units, corpus), shape))


def _pack_responses(corpus: Corpus, sequences: Sequence[SequenceId], shape: BatchShape) -> list[Bin]:
    questions = [int(question) for question, _ in sequences]
    ids = [[int(response)] for _, response in sequences]
    prompts, lengths = sequence_lengths(corpus, questions, ids)
    clusters = [
        Cluster(question, prompts[index], ids[index], lengths[index], index=index)
        for index, question in enumerate(questions)
    ]
    shape = dataclasses.replace(shape, share_responses=False)
    bins: list[Bin] = []
    for start in range(0, len(clusters), _WINDOW):
        window = join_questions(clusters[start : start + _WINDOW], merge=False)
        bins += pack_clusters(window, shape, corpus)
    return bins


# --- clusters --------------------------------------------------------------------------------------------------------


def indivisible_parts(units: Sequence[Unit], shape: BatchShape) -> list[Unit]:
    """What one microbatch must hold together: the units, or, if responses are not shared, their pairs as units."""
    if shape.share_responses:
        return list(units)
    parts: list[Unit] = []
    for unit in units:
        pairs = [
            Unit(unit.question, (unit.responses[chosen], unit.responses[rejected]), ((0, 1),), None, weight)
            for (chosen, rejected), weight in zip(unit.pairs, unit.weights)
        ]
        parts += pairs or [unit]
    return parts


def clusters_of(parts: Sequence[Unit], corpus: Corpus) -> list[Cluster]:
    """The responses of each part as a cluster; `index` is the part's."""
    questions = [part.question for part in parts]
    first = corpus.first_response[questions].tolist()
    ids = [[base + response for response in part.responses] for base, part in zip(first, parts)]
    prompts, lengths = sequence_lengths(corpus, questions, ids)
    lists = [int(not part.pairs and part.desirable is None) for part in parts]
    return [
        Cluster(part.question, prompts[index], ids[index], lengths[index], len(part.pairs), lists[index], index)
        for index, part in enumerate(parts)
    ]


def sequence_lengths(
    corpus: Corpus, questions: Sequence[int], ids: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """The prompt tokens of each question, and the completion tokens of each of its response ids after that prompt."""
    prompts = corpus.prompt_lengths[np.asarray(questions, np.int64)]
    counts = [len(responses) for responses in ids]
    flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64)
    lengths = np.minimum(corpus.completion_lengths[flat], corpus.max_length - np.repeat(prompts, counts))
    remaining = iter(lengths.tolist())
    return prompts.tolist(), [list(itertools.islice(remaining, count)) for count in counts]


def join_questions(clusters: Sequence[Cluster], merge: bool) -> list[Cluster]:
    """The clusters of each question as one, so that they are placed together if they fit.

    merge: a response of several of them is laid out once.
    """
    by_question: dict[int, list[Cluster]] = {}
    for cluster in clusters:
        by_question.setdefault(cluster.question, []).append(cluster)
    joined = []
    for question, parts in by_question.items():
        if len(parts) == 1:
            joined.append(parts[0])
            continue
        together = Cluster(question, parts[0].prompt, [], [], parts=parts)
        seen: set[int] = set()
        for part in parts:
            together.pairs += part.pairs
            together.lists += part.lists
            for response, length in zip(part.responses, part.lengths):
                if not merge or response not in seen:
                    seen.add(response)
                    together.responses.append(response)
                    together.lengths.append(length)
        joined.append(together)
    return joined


def pack_clusters(clusters: Sequence[Cluster], shape: BatchShape, corpus: Corpus, enough: int = 1) -> list[Bin]:
    """The microbatches of `search.pack`. Raises UserError for a question that does not fit, with what it needs."""
    try:
        return pack(clusters, shape, enough)
    except TooLarge as error:
        cluster = error.cluster
    name = repr(corpus.key(cluster.question).split("\t")[-1][:80])
    count, longest = len(cluster.responses), cluster.prompt + max(cluster.lengths)
    if longest > shape.row_length:
        raise UserError(f"batch.row_length {shape.row_length}: the question {name} has an example of {longest} tokens")
    shapes = (dataclasses.replace(shape.unlimited(), rows=rows) for rows in range(1, count + 1))
    needed = next(larger.rows for larger in shapes if Bin(larger).fit(cluster) is not None)
    if needed <= shape.rows:
        raise UserError(
            f"the question {name} needs more than a microbatch was sized for: {count} responses, "
            f"{sum(cluster.lengths)} completion tokens, {cluster.pairs} pairs"
        )
    raise UserError(
        f"batch.microbatch_rows {shape.rows}: the question {name} has {count} responses that run together and need "
        f"{needed} rows of {shape.row_length} tokens"
    )


def _packed_numbers(bins: Sequence[Bin], merge: bool) -> list[list[int]]:
    """The responses of each cluster before joining, by `index`, as numbers in the order of packing over all bins."""
    numbers: dict[int, list[int]] = {}
    first = 0
    for bin_ in bins:
        for cluster, slots in bin_.clusters:
            packed = [first + slot for slot in slots]
            number_of = dict(zip(cluster.responses, packed))
            remaining = iter(packed)
            for part in cluster.parts or [cluster]:
                numbers[part.index] = [number_of[r] if merge else next(remaining) for r in part.responses]
        first += len(bin_.placed)
    return [numbers[index] for index in range(len(numbers))]
