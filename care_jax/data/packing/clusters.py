"""From units to clusters, which one microbatch must hold whole, and from clusters to microbatches."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from care_jax.data.corpus import Corpus
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.bins import Bin, Cluster
from care_jax.data.packing.search import TooLarge, pack
from care_jax.data.preferences import Unit
from care_jax.errors import UserError


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
    clusters = []
    for index, part in enumerate(parts):
        is_list = not part.pairs and part.desirable is None
        clusters.append(
            Cluster(part.question, prompts[index], ids[index], lengths[index], len(part.pairs), int(is_list), index)
        )
    return clusters


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
            together.groups += part.groups
            for response, length in zip(part.responses, part.lengths):
                if not merge or response not in seen:
                    seen.add(response)
                    together.responses.append(response)
                    together.lengths.append(length)
        joined.append(together)
    return joined


class Place(NamedTuple):
    """Where a cluster was packed."""

    microbatch: int
    slots: list[int]  # of the responses, as packed


def cluster_places(bins: Sequence[Bin], merge: bool) -> list[Place]:
    """The places of the clusters before they were joined, by `index`."""
    places: dict[int, Place] = {}
    for number, bin_ in enumerate(bins):
        for cluster, slots in bin_.clusters:
            if not cluster.parts:
                places[cluster.index] = Place(number, slots)
                continue
            slot_of, at = dict(zip(cluster.responses, slots)), 0
            for part in cluster.parts:
                size = len(part.responses)
                part_slots = [slot_of[response] for response in part.responses] if merge else slots[at : at + size]
                at += size
                places[part.index] = Place(number, part_slots)
    return [places[index] for index in range(len(places))]


def pack_clusters(
    clusters: Sequence[Cluster], shape: BatchShape, merge: bool, corpus: Corpus, enough: int = 1
) -> list[Bin]:
    """The microbatches of `search.pack`; raises UserError with the question that does not fit."""
    try:
        return pack(clusters, shape.capacity(merge), enough)
    except TooLarge as error:
        raise UserError(explain_too_large(error.cluster, shape, merge, corpus)) from None


def explain_too_large(cluster: Cluster, shape: BatchShape, merge: bool, corpus: Corpus) -> str:
    """The message for a cluster that an empty microbatch cannot hold: which limit it exceeds and what it needs."""
    longest = cluster.prompt + max(cluster.lengths)
    name = repr(corpus.key(cluster.question).split("\t")[-1][:80])
    if longest > shape.row_length:
        return f"batch.row_length {shape.row_length}: the question {name} has an example of {longest} tokens"
    needed = rows_needed(cluster, shape, merge)
    if needed <= shape.rows:
        return (
            f"the question {name} needs more than a microbatch was sized for: {len(cluster.responses)} responses, "
            f"{sum(cluster.lengths)} completion tokens, {cluster.pairs} pairs"
        )
    return (
        f"batch.microbatch_rows {shape.rows}: the question {name} has {len(cluster.responses)} responses that run "
        f"together and need {needed} rows of {shape.row_length} tokens"
    )


def rows_needed(cluster: Cluster, shape: BatchShape, merge: bool = True) -> int:
    """The rows that the cluster needs in a microbatch of its own."""
    unlimited = shape.capacity(merge)._replace(responses=2**60, completions=2**60, pairs=2**60, groups=2**60)
    return next(
        rows
        for rows in range(1, len(cluster.responses) + 1)
        if Bin(unlimited._replace(rows=rows)).fit(cluster, unlimited._replace(rows=rows)) is not None
    )
