"""From a plan to the arrays of a batch, and back. Vectorised: no loop over tokens or responses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from care_jax.data.corpus import Corpus, ragged
from care_jax.data.packing.plans import Batch, StepPlan

# (questions [n], response ids [n]) -> reference logps [n] float32
RefLogps = Callable[[np.ndarray, np.ndarray], np.ndarray]


def fill(
    plan: StepPlan,
    corpus: Corpus,
    rows: slice | None = None,
    ref_logps: RefLogps | None = None,
    microbatches: tuple[int, int] | None = None,
) -> Batch:
    """The batch of a plan. rows: those of every microbatch to fill the token arrays for (a host's own; None is all).

    microbatches: (first, end), only these, of a plan that holds more than one batch; the batch always has
    `layout.microbatches` of them (the plan's own count where that is 0), those behind the filled ones empty.
    ref_logps: of sequences; zeros without it.
    """
    layout = plan.layout
    begin, end = (0, plan.count) if microbatches is None else microbatches
    end = min(end, plan.count)
    held = layout.microbatches or plan.count
    if end - begin > held:
        raise ValueError(f"{end - begin} microbatches do not fit a batch of {held}")
    own = slice(0, layout.rows) if rows is None else rows
    tokens, positions, segments, prompt_segments = _token_arrays(plan, corpus, own, begin, end, held)

    here = (plan.microbatch >= begin) & (plan.microbatch < end)
    place = plan.microbatch[here] - begin, plan.slot[here]
    sequences, lengths = plan.sequences[here], plan.lengths[here]
    completion = _completion_arrays(plan, here, begin, held)
    table = held, layout.responses
    zeros = np.zeros(len(lengths), np.float32)
    known = zeros if ref_logps is None else ref_logps(sequences[:, 0], sequences[:, 1])
    pairs = np.zeros((held, layout.pairs, 2), np.int32)
    pair_weights = np.zeros((held, layout.pairs), np.float32)
    among = (plan.pairs[:, 0] >= begin) & (plan.pairs[:, 0] < end)
    at = plan.pairs[among, 0] - begin
    nth = _counted(at)
    pairs[at, nth] = plan.pairs[among, 1:]
    pair_weights[at, nth] = plan.pair_weights[among]

    groups = np.zeros((held, layout.groups, layout.width), np.int32)
    mask = np.zeros((held, layout.groups, layout.width), bool)
    group_weights = np.zeros((held, layout.groups), np.float32)
    taken = np.zeros(held, np.int64)
    for (microbatch, slots), weight in zip(plan.lists, plan.list_weights):
        if begin <= microbatch < end:
            index = microbatch - begin, taken[microbatch - begin]
            groups[index][: len(slots)], mask[index][: len(slots)] = slots, True
            group_weights[index] = weight
            taken[microbatch - begin] += 1

    return Batch(
        tokens=tokens,
        positions=positions,
        segment_ids=segments,
        prompt_segment_ids=prompt_segments,
        **completion,
        lengths=_placed(table, place, lengths, 1, np.int32),
        ratings=_placed(table, place, corpus.ratings[sequences[:, 1]], 0, np.float32),
        ref_logps=_placed(table, place, known, 0, np.float32),
        desirable=_placed(table, place, plan.desirable[here], 0, bool),
        segment_weights=_placed(table, place, plan.weights[here], 0, np.float32),
        pairs=pairs,
        pair_weights=pair_weights,
        groups=groups,
        group_mask=mask,
        group_weights=group_weights,
        n_microbatches=np.asarray(max(0, end - begin), np.int32),
        mismatched=None if plan.mismatched is None else fill(plan.mismatched, corpus, rows, ref_logps),
    )


def _token_arrays(
    plan: StepPlan, corpus: Corpus, rows: slice, begin: int, end: int, held: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """tokens, positions, segment_ids, prompt_segment_ids [held, own rows, R]."""
    low, high = rows.start or 0, plan.layout.rows if rows.stop is None else rows.stop
    microbatch, row = plan.segments[:, 0], plan.segments[:, 1]
    parts = plan.segments[(microbatch >= begin) & (microbatch < end) & (row >= low) & (row < high)]
    microbatch, row, column, length, question, response, segment, prompt_segment, position = parts.T
    start = ((microbatch - begin) * (high - low) + row - low) * plan.layout.row_length + column
    place = ragged(start, length)
    shape = (held, high - low, plan.layout.row_length)
    flat_shape = (held * (high - low) * plan.layout.row_length,)
    tokens = np.zeros(shape, np.int32)
    prompts = question >= 0
    flat = tokens.reshape(-1)
    flat[ragged(start[prompts], length[prompts])] = corpus.gather_prompts(question[prompts])
    answers = ~prompts
    flat[ragged(start[answers], length[answers])] = corpus.gather_completions(response[answers], length[answers])
    return (
        tokens,
        _placed(flat_shape, place, ragged(position, length)).reshape(shape),
        _placed(flat_shape, place, np.repeat(segment, length)).reshape(shape),
        _placed(flat_shape, place, np.repeat(prompt_segment, length)).reshape(shape),
    )


def _completion_arrays(plan: StepPlan, here: np.ndarray, begin: int, held: int) -> dict[str, np.ndarray]:
    """completion_positions, predictor_positions, completion_segments [held, C], ordered by slot in each microbatch."""
    order = np.flatnonzero(here)
    order = order[np.lexsort((plan.slot[order], plan.microbatch[order]))]
    lengths, start = plan.lengths[order], plan.start[order]
    microbatch = np.repeat(plan.microbatch[order] - begin, lengths)
    index = microbatch, _counted(microbatch)
    positions = ragged(start, lengths)
    predictors = positions - 1
    # The first token of a response is predicted by the end of its prompt, which need not stand right before it.
    predictors[np.cumsum(lengths) - lengths] = plan.predictor[order]
    shape = held, plan.layout.completions
    segments = np.repeat(plan.slot[order], lengths)
    return {
        "completion_positions": _placed(shape, index, positions),
        "predictor_positions": _placed(shape, index, predictors),
        "completion_segments": _placed(shape, index, segments, plan.layout.responses),
    }


def _placed(
    shape: tuple[int, ...], index: Any, values: np.ndarray, padding: int = 0, dtype: type = np.int32
) -> np.ndarray:
    """An array of padding with values at an index."""
    array: np.ndarray = np.full(shape, padding, dtype)
    array[index] = values
    return array


def _counted(ids: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within every value of an array of small integers, in the order of its elements."""
    order = np.argsort(ids, kind="stable")
    counts = np.bincount(ids)
    nth = np.empty(len(ids), np.int64)
    nth[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    return nth


class Unpacked(NamedTuple):
    """One response of a batch, read back from its arrays alone."""

    microbatch: int
    slot: int
    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def unpack(batch: Batch) -> list[Unpacked]:
    """Every response with its prompt, by microbatch and slot, as the model sees them; for checks and inspection.

    What a token sees is what the visibility rule says of segments, so mixed segments would show as wrong tokens.
    """
    padding = batch.lengths.shape[1]
    found = []
    for number in range(int(batch.n_microbatches)):
        tokens, positions = batch.tokens[number], batch.positions[number]
        segments, prompts = batch.segment_ids[number], batch.prompt_segment_ids[number]
        width = tokens.shape[1]
        for slot in range(padding):
            places = batch.completion_positions[number][batch.completion_segments[number] == slot]
            if not len(places):
                continue
            row, columns = int(places[0]) // width, places % width
            first, last = int(columns[0]), int(columns[-1])
            seen = np.arange(width) <= last
            seen &= (segments[row] == segments[row, first]) | (segments[row] == prompts[row, first])
            whole = tokens[row][seen]
            if not np.array_equal(positions[row][seen], np.arange(len(whole))):
                raise ValueError(f"microbatch {number}, response {slot}: positions do not run from 0")
            split = len(whole) - len(places)
            found.append(Unpacked(number, slot, tuple(whole[:split].tolist()), tuple(whole[split:].tolist())))
    return found
