"""Small corpora made from lengths. Every token has an id of its own, so that a mixed-up token is seen."""

import itertools
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from care_jax.data.chat import Encoded
from care_jax.data.corpus import Corpus, build
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.capacities import batch_shape
from care_jax.data.preferences import Unit, make_units
from care_jax.data.questions import Question, Response


def corpus_of(shapes, max_length=64, ratings=None) -> Corpus:
    """shapes: (prompt length, completion lengths) of each question; without ratings, they fall from 10."""
    ids = itertools.count(1)
    questions, encodings = [], []
    for number, (prompt, completions) in enumerate(shapes):
        rated = ratings[number] if ratings else [float(10 - i) for i in range(len(completions))]
        responses = tuple(Response(f"{number} {i}", rated[i], "model", i) for i in range(len(completions)))
        questions.append(Question(f"q{number}", responses, f"arab\tq{number}", "arab", "native", "norms"))
        encodings.append(
            Encoded([next(ids) for _ in range(prompt)], [[next(ids) for _ in range(n)] for n in completions])
        )
    return build(questions, encodings, max_length)


def spelled(corpus: Corpus, units: list[Unit]) -> list[tuple]:
    """Every pair, label or list of the units in token ids, with its weight: what a batch must contain."""

    def words(unit, response):
        prompt, completion = corpus.sequence(unit.question, corpus.response_id(unit.question, response))
        return tuple(prompt.tolist()), tuple(completion.tolist())

    examples = []
    for unit in units:
        responses = [words(unit, response) for response in unit.responses]
        if unit.pairs:
            examples += [
                ("pair", responses[i], responses[j], w) for (i, j), w in zip(unit.pairs, unit.weights, strict=True)
            ]
        elif unit.desirable is None:
            examples.append(("list", *responses, unit.weight))
        else:
            examples.append(("label", responses[0], unit.desirable, unit.weight))
    return sorted(examples)


class Unpacked(NamedTuple):
    """One response of a batch, read back from its arrays alone."""

    microbatch: int
    slot: int
    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def unpack(batch) -> list[Unpacked]:
    """Every response with its prompt, by microbatch and slot, as the model sees them.

    The tokens are those that attention lets the last token see, so mixed segments show as wrong tokens.
    """
    padding = batch.lengths.shape[1]
    responses = []
    for number in range(int(batch.n_microbatches)):
        tokens, positions = batch.tokens[number], batch.positions[number]
        segments, prompts = batch.segment_ids[number], batch.prompt_segment_ids[number]
        width = tokens.shape[1]
        for slot in range(padding):
            places = batch.completion_positions[number][batch.completion_slots[number] == slot]
            if not len(places):
                continue
            row, columns = int(places[0]) // width, places % width
            first, last = int(columns[0]), int(columns[-1])
            seen = np.arange(width) <= last
            seen &= (segments[row] == segments[row, first]) | (segments[row] == prompts[row, first])
            ids = tokens[row][seen]
            if not np.array_equal(positions[row][seen], np.arange(len(ids))):
                raise ValueError(f"microbatch {number}, response {slot}: positions do not run from 0")
            split = len(ids) - len(places)
            responses.append(Unpacked(number, slot, tuple(ids[:split].tolist()), tuple(ids[split:].tolist())))
    return responses


def read_back(batch) -> list[tuple]:
    """The same from a batch's arrays."""
    words = {(one.microbatch, one.slot): (one.prompt, one.completion) for one in unpack(batch)}
    examples = []
    for m in range(int(batch.n_microbatches)):
        for (chosen, rejected), weight in zip(batch.pairs[m].tolist(), batch.pair_weights[m].tolist()):
            if weight:
                examples.append(("pair", words[m, chosen], words[m, rejected], weight))
        for slots, mask, weight in zip(batch.groups[m], batch.group_mask[m], batch.group_weights[m].tolist()):
            if weight:
                examples.append(("list", *(words[m, slot] for slot in slots[mask].tolist()), weight))
        for slot, weight in enumerate(batch.response_weights[m].tolist()):
            if weight:
                examples.append(("label", words[m, slot], bool(batch.desirable[m, slot]), weight))
    return sorted(examples)


VIEWS = {
    "pair": {"policy": "all"},
    "group": {"policy": "all", "unit": "group"},
    "gap": {"policy": "all", "unit": "group", "weights": "gap"},
    "unpaired": {"view": "unpaired", "desirable_min": 8},
    "lists": {"view": "lists"},
}


def units_of(corpus: Corpus, view: str) -> list[Unit]:
    return make_units(corpus.questions, **VIEWS[view])


SHAPES = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 20), min_size=2, max_size=6)), min_size=2, max_size=8
)
SWITCHES = [
    {"packing": packing, "share_responses": responses, "share_prompts": prompts}
    for packing, responses, prompts in itertools.product((True, False), repeat=3)
]


def shape_of(corpus: Corpus, units: list[Unit], **options) -> BatchShape:
    """The shape of a run over these units, with 6 rows of 64 tokens unless options say otherwise."""
    return batch_shape(units, corpus, BatchShape(**({"rows": 6, "row_length": 64} | options)))
