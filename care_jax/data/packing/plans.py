"""The batch of one optimizer step, and the plan that lays its units into microbatches of packed rows.

A plan depends on lengths only, so every host makes the same one and fills (`filling.fill`) only the rows it owns.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Int64

from care_jax.data.corpus import Corpus
from care_jax.data.packing.bins import Bin, Capacity, Cluster, TooLarge, pack
from care_jax.data.packing.positions import lay_out
from care_jax.data.preferences import Unit
from care_jax.errors import UserError

Array = Any  # numpy on the host, global jax.Array in the step
Sequences = Sequence[tuple[int, int]]  # (question, response id): what stands behind which prompt
_WINDOW = 4096  # sequences packed at once in a pass over many: best fit over all of them would be quadratic


@struct.dataclass
class Batch:
    """One step. A microbatches of M rows of R tokens; C completion tokens, S responses, P pairs, G lists of K each."""

    tokens: Array  # [A, M, R] int32
    positions: Array  # [A, M, R] int32; a response continues from its prompt's end
    segment_ids: Array  # [A, M, R] int32; 0 is padding
    prompt_segment_ids: Array  # [A, M, R] int32; the segment of the prompt that a token sees besides its own
    completion_positions: Array  # [A, C] int32; flat place (row * R + column) of each completion token
    predictor_positions: Array  # [A, C] int32; flat place of the token whose hidden state predicts it
    completion_segments: Array  # [A, C] int32; the response's slot 0..S-1, S in padding
    lengths: Array  # [A, S] int32; completion tokens, 1 in padding slots
    ratings: Array  # [A, S] float32; 0 where there is none
    ref_logps: Array  # [A, S] float32
    desirable: Array  # [A, S] bool
    segment_weights: Array  # [A, S] float32; unit weight of a response in the unpaired view, 0 in padding
    pairs: Array  # [A, P, 2] int32; slots of chosen and rejected, 0 in padding
    pair_weights: Array  # [A, P] float32; 0 in padding
    groups: Array  # [A, G, K] int32; slots of a list's responses
    group_mask: Array  # [A, G, K] bool
    group_weights: Array  # [A, G] float32; 0 in padding
    n_microbatches: Array  # int32 scalar; the microbatches that hold anything
    mismatched: "Batch | None" = None  # KTO: the step's mismatched completions, laid out the same way, unit weights 1


@dataclass(frozen=True)
class BatchShape:
    """The static sizes of a batch, the same in every step of a run (so that the step is compiled once).

    rows M, row_length R, responses S, completions C, pairs P, groups G, width K, microbatches A (as many as the fullest
    step needs; 0 while not yet known: `plan_run` says). packing, share_responses, share_prompts: as `batch.*`.
    """

    rows: int
    row_length: int
    responses: int
    completions: int
    pairs: int = 1
    groups: int = 1
    width: int = 1
    microbatches: int = 0
    packing: bool = True
    share_responses: bool = True
    share_prompts: bool = True

    def room(self, merge: bool) -> Capacity:
        return Capacity(
            self.rows,
            self.row_length,
            self.responses,
            self.completions,
            self.pairs,
            self.groups,
            not self.packing,
            self.share_prompts and self.packing,
            merge and self.share_responses,
        )


@dataclass(frozen=True)
class StepPlan:
    """Where everything stands. Parallel arrays: responses (by microbatch and slot), segments, pairs, lists.

    sequences: (question, response id) of each response; lengths: its completion tokens; microbatch, slot: its place;
    start, predictor: flat places (row * R + column) of its first token and of the token that predicts that one.
    segments: columns microbatch, row, column, length, question or -1, response id or -1, segment, prompt segment, first
    position. pairs: columns microbatch, chosen slot, rejected slot. lists: (microbatch, slots).
    """

    layout: BatchShape
    count: int  # microbatches that hold anything
    sequences: Int64[np.ndarray, "responses 2"]
    lengths: Int64[np.ndarray, " responses"]
    microbatch: Int64[np.ndarray, " responses"]
    slot: Int64[np.ndarray, " responses"]
    start: Int64[np.ndarray, " responses"]
    predictor: Int64[np.ndarray, " responses"]
    weights: np.ndarray  # [responses] float32, in the unpaired view
    desirable: np.ndarray  # [responses] bool
    segments: Int64[np.ndarray, "segments 9"]
    pairs: Int64[np.ndarray, "pairs 3"]
    pair_weights: np.ndarray  # [pairs] float32
    lists: tuple[tuple[int, tuple[int, ...]], ...]
    list_weights: np.ndarray  # [lists] float32
    mismatched: "StepPlan | None" = None

    @property
    def tokens(self) -> int:
        """Token slots filled."""
        return int(self.segments[:, 3].sum())

    @property
    def efficiency(self) -> float:
        """The part of the token slots run that is filled."""
        return self.tokens / max(1, self.count * self.layout.rows * self.layout.row_length)


# --- from units to clusters ------------------------------------------------------------------------------------------


def atoms_of(units: Sequence[Unit], corpus: Corpus, layout: BatchShape) -> list[tuple[Cluster, Unit]]:
    """What may not be divided: units, or their pairs as units of their own, each with its responses as a cluster."""
    parts: list[Unit] = []
    for unit in units:
        if unit.pairs and not layout.share_responses:
            for (i, j), weight in zip(unit.pairs, unit.weights):
                parts.append(Unit(unit.question, (unit.responses[i], unit.responses[j]), ((0, 1),), None, weight))
        else:
            parts.append(unit)
    questions = np.asarray([part.question for part in parts], np.int64)
    first = corpus.first_response[questions].tolist()
    names = [[base + response for response in part.responses] for base, part in zip(first, parts)]
    prompts, lengths = _lengths(corpus, questions, names)
    found: list[tuple[Cluster, Unit]] = []
    at = 0
    for number, (part, own) in enumerate(zip(parts, names)):
        is_list = not part.pairs and part.desirable is None
        own_lengths = lengths[at : at + len(own)]
        at += len(own)
        cluster = Cluster(part.question, prompts[number], own, own_lengths, len(part.pairs), int(is_list), [number])
        found.append((cluster, part))
    return found


def _lengths(
    corpus: Corpus, questions: Int64[np.ndarray, " n"], names: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """(prompt tokens of each question, completion tokens of each response id behind it, one after the other)."""
    prompts = corpus.prompt_lengths[questions]
    ids = np.fromiter(itertools.chain.from_iterable(names), np.int64)
    room = corpus.max_length - np.repeat(prompts, [len(own) for own in names])
    return prompts.tolist(), np.minimum(corpus.completion_lengths[ids], room).tolist()


def _gathered(atoms: Sequence[Cluster], merge: bool) -> list[Cluster]:
    """Atoms of one question as one cluster, so that they land together where they fit; distinct responses if merged."""
    by_question: dict[int, list[Cluster]] = {}
    for atom in atoms:
        by_question.setdefault(atom.question, []).append(atom)
    whole = []
    for question, parts in by_question.items():
        if len(parts) == 1:
            whole.append(parts[0])
            continue
        together = Cluster(question, parts[0].prompt, [], [], parts=parts)
        seen: set[int] = set()
        for part in parts:
            together.pairs += part.pairs
            together.groups += part.groups
            for name, length in zip(part.names, part.lengths):
                if not merge or name not in seen:
                    seen.add(name)
                    together.names.append(name)
                    together.lengths.append(length)
        whole.append(together)
    return whole


def _slots_of(bins: Sequence[Bin], merge: bool) -> dict[int, tuple[int, list[int]]]:
    """use -> (microbatch, slots of its cluster's responses)."""
    found: dict[int, tuple[int, list[int]]] = {}
    for number, bin_ in enumerate(bins):
        for cluster, slots in bin_.clusters:
            if not cluster.parts:
                found[cluster.uses[0]] = number, slots
                continue
            own, at = dict(zip(cluster.names, slots)), 0
            for part in cluster.parts:
                part_slots = [own[name] for name in part.names] if merge else slots[at : at + len(part.names)]
                at += len(part.names)
                found[part.uses[0]] = number, part_slots
    return found


# --- plans -----------------------------------------------------------------------------------------------------------


def plan_step(
    units: Sequence[Unit], corpus: Corpus, layout: BatchShape, mismatched: BatchShape | None = None
) -> StepPlan:
    """Lays out the units of one step in the fewest microbatches found.

    Atoms (a unit with shared responses, a pair without, a labelled response) never straddle a microbatch, those of one
    question stay together where they fit. mismatched: the layout of KTO's mismatched completions, if they are needed.
    Raises UserError naming a question that needs more rows than a microbatch has, with the number it needs.
    """
    atoms, merge, bins = _packed(units, corpus, layout)
    slots = _slots_of(bins, merge)
    order, plan = lay_out(bins, layout.row_length, layout.share_prompts and layout.packing)

    weights = np.zeros(len(plan["lengths"]), np.float32)
    desirable = np.zeros(len(plan["lengths"]), bool)
    first = [0, *itertools.accumulate(len(bin_.placed) for bin_ in bins)]
    pairs: list[tuple[int, int, int]] = []
    pair_weights: list[float] = []
    lists: list[tuple[int, tuple[int, ...]]] = []
    list_weights: list[float] = []
    for use, (_, unit) in enumerate(atoms):
        number, own = slots[use]
        final = [order[number][slot] for slot in own]
        if unit.desirable is not None:
            weights[first[number] + final[0]] = unit.weight
            desirable[first[number] + final[0]] = unit.desirable
        elif unit.pairs:
            pairs += [(number, final[chosen], final[rejected]) for chosen, rejected in unit.pairs]
            pair_weights += unit.weights
        else:
            lists.append((number, tuple(final)))
            list_weights.append(unit.weight)
    return StepPlan(
        layout=layout,
        count=len(bins),
        **plan,
        weights=weights,
        desirable=desirable,
        pairs=np.asarray(pairs, np.int64).reshape(-1, 3),
        pair_weights=np.asarray(pair_weights, np.float32),
        lists=tuple(lists),
        list_weights=np.asarray(list_weights, np.float32),
        mismatched=None if mismatched is None else _plan_mismatched(units, corpus, mismatched),
    )


def count_step(units: Sequence[Unit], corpus: Corpus, layout: BatchShape, known: int) -> int:
    """Microbatches of the plan of these units, without making the rest of it; `known` where they are no more."""
    return max(known, len(_packed(units, corpus, layout, max(1, known))[2]))


def _packed(units: Sequence[Unit], corpus: Corpus, layout: BatchShape, enough: int = 1) -> tuple[list, bool, list[Bin]]:
    """(atoms, whether a response stands once for all of them, the microbatches)."""
    atoms = atoms_of(units, corpus, layout)
    # A response that two labelled units name is two units, and stands twice.
    merge = layout.share_responses and not any(unit.desirable is not None for unit in units)
    return atoms, merge, _pack(_gathered([cluster for cluster, _ in atoms], merge), layout, merge, corpus, enough)


def plan_responses(corpus: Corpus, sequences: Sequences, layout: BatchShape) -> StepPlan:
    """Lays out sequences, (question, response id) each, as training rows; `plan.microbatch` and `plan.slot` in the
    order of `sequences` say where each one's number will be. Units' weights are 1 on every response.
    """
    bins = _packed_responses(corpus, sequences, layout)
    order, plan = lay_out(bins, layout.row_length, layout.share_prompts and layout.packing)
    slots = _slots_of(bins, merge=False)
    first = [0, *itertools.accumulate(len(bin_.placed) for bin_ in bins)]
    places = (slots[use] for use in range(len(sequences)))
    back = np.asarray([first[number] + order[number][own[0]] for number, own in places], np.int64)
    per_response = ("sequences", "lengths", "microbatch", "slot", "start", "predictor")
    plan |= {name: plan[name][back] for name in per_response}
    return StepPlan(
        layout=layout,
        count=len(bins),
        **plan,
        weights=np.ones(len(sequences), np.float32),
        desirable=np.zeros(len(sequences), bool),
        pairs=np.zeros((0, 3), np.int64),
        pair_weights=np.zeros(0, np.float32),
        lists=(),
        list_weights=np.zeros(0, np.float32),
    )


def _packed_responses(corpus: Corpus, sequences: Sequences, layout: BatchShape) -> list[Bin]:
    names = [(int(response),) for _, response in sequences]
    prompts, lengths = _lengths(corpus, np.asarray([question for question, _ in sequences], np.int64), names)
    clusters = [
        Cluster(int(question), prompts[use], list(names[use]), [lengths[use]], uses=[use])
        for use, (question, _) in enumerate(sequences)
    ]
    bins: list[Bin] = []
    for window in range(0, len(clusters), _WINDOW):
        bins += _pack(_gathered(clusters[window : window + _WINDOW], merge=False), layout, False, corpus)
    return bins


def mismatched_sequences(units: Sequence[Unit], corpus: Corpus) -> list[tuple[int, int]]:
    """(question of a unit, response id of the nearest earlier unit with another question key), unit by unit, cyclic.

    Raises UserError where the units hold fewer than two question keys.
    """
    keys = [corpus.key(unit.question) for unit in units]
    if len(set(keys)) < 2:
        raise UserError(
            "batch.examples: the KL estimate needs two different questions in every step, "
            f"but one of {len(units)} units holds {len(set(keys))}"
        )
    found: list[tuple[int, int]] = []
    for number, unit in enumerate(units):
        back = next(n for n in range(1, len(units)) if keys[number - n] != keys[number])
        other = units[number - back]
        found.append((unit.question, corpus.response_id(other.question, other.responses[0])))
    return found


def count_mismatched(units: Sequence[Unit], corpus: Corpus, layout: BatchShape) -> int:
    """Microbatches that the mismatched completions of these units need."""
    return len(_packed_responses(corpus, mismatched_sequences(units, corpus), layout))


def _plan_mismatched(units: Sequence[Unit], corpus: Corpus, layout: BatchShape) -> StepPlan:
    return plan_responses(corpus, mismatched_sequences(units, corpus), layout)


def _pack(clusters: Sequence[Cluster], layout: BatchShape, merge: bool, corpus: Corpus, enough: int = 1) -> list[Bin]:
    try:
        return pack(clusters, layout.room(merge), enough)
    except TooLarge as error:
        raise UserError(refusal(error.cluster, layout, merge, corpus)) from None


def refusal(cluster: Cluster, layout: BatchShape, merge: bool, corpus: Corpus) -> str:
    longest = cluster.prompt + max(cluster.lengths)
    name = repr(corpus.key(cluster.question).split("\t")[-1][:80])
    if longest > layout.row_length:
        return f"batch.row_length {layout.row_length}: the question {name} has an example of {longest} tokens"
    needed = rows_needed(cluster, layout, merge)
    if needed <= layout.rows:
        return (
            f"the question {name} needs more than a microbatch was sized for: {len(cluster.names)} responses, "
            f"{sum(cluster.lengths)} completion tokens, {cluster.pairs} pairs"
        )
    return (
        f"batch.microbatch_rows {layout.rows}: the question {name} has {len(cluster.names)} responses that run "
        f"together and need {needed} rows of {layout.row_length} tokens"
    )


def rows_needed(cluster: Cluster, layout: BatchShape, merge: bool = True) -> int:
    """Rows that the cluster takes in a microbatch of its own."""
    room = layout.room(merge)._replace(responses=2**60, completions=2**60, pairs=2**60, groups=2**60)
    return next(
        rows
        for rows in range(1, len(cluster.names) + 1)
        if Bin(room._replace(rows=rows)).fit(cluster, room._replace(rows=rows)) is not None
    )
