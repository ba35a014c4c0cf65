"""From a plan to the arrays of a batch. Vectorised: no loop over tokens or responses."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int, Int64

from care_jax.data.corpus import Corpus, ragged
from care_jax.data.packing.batch import Batch
from care_jax.data.packing.plans import StepPlan
from care_jax.data.packing.positions import Responses, Segments

# From questions [n] and response ids [n] to reference logps [n].
RefLogps = Callable[[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]], Float32[np.ndarray, " n"]]
_Arrays = dict[str, np.ndarray]


def fill(
    plan: StepPlan,
    corpus: Corpus,
    rows: slice | None = None,
    ref_logps: RefLogps | None = None,
    microbatches: tuple[int, int] | None = None,
) -> Batch:
    """The batch of a plan, as numpy arrays.

    rows: the rows of each microbatch that this host owns; None is all. ref_logps: without it they are zeros.
    microbatches: (first, end) of those to fill, from a plan of more than one batch. The batch always has
    `plan.shape.microbatches` of them (`plan.count` if that is 0); those after the filled ones are empty.
    """
    first, end = (0, plan.count) if microbatches is None else microbatches
    end = min(end, plan.count)
    size = plan.shape.microbatches or plan.count
    if end - first > size:
        raise ValueError(f"{end - first} microbatches do not fit a batch of {size}")
    low, high, _ = (rows or slice(None)).indices(plan.shape.rows)
    arrays = dataclasses.replace(plan.shape, rows=high - low, microbatches=size).padding_arrays()
    in_batch = _within(plan.segments.microbatch, first, end)
    _fill_rows(arrays, plan.segments[in_batch & _within(plan.segments.row, low, high)], corpus, first, low)
    responses = plan.responses[_within(plan.responses.microbatch, first, end)]
    _fill_completions(arrays, responses, first)
    _fill_responses(arrays, responses, corpus, first, ref_logps)
    _fill_units(arrays, plan, first, end)
    return Batch(
        **arrays,
        n_microbatches=np.asarray(max(0, end - first), np.int32),
        mismatched=None if plan.mismatched is None else fill(plan.mismatched, corpus, rows, ref_logps),
    )


def _fill_rows(arrays: _Arrays, segments: Segments, corpus: Corpus, first: int, low: int) -> None:
    """Fills tokens, positions, segment_ids, prompt_segment_ids [microbatches, rows from `low`, R]."""
    _, rows, row_length = arrays["tokens"].shape
    length = segments.length
    start = ((segments.microbatch - first) * rows + segments.row - low) * row_length + segments.column
    tokens = arrays["tokens"].reshape(-1)
    prompts = segments.question >= 0
    tokens[ragged(start[prompts], length[prompts])] = corpus.prompts.gather(segments.question[prompts], length[prompts])
    answers = ~prompts
    tokens[ragged(start[answers], length[answers])] = corpus.completions.gather(
        segments.response[answers], length[answers]
    )
    place = ragged(start, length)
    arrays["positions"].reshape(-1)[place] = ragged(segments.position, length)
    arrays["segment_ids"].reshape(-1)[place] = np.repeat(segments.segment, length)
    arrays["prompt_segment_ids"].reshape(-1)[place] = np.repeat(segments.prompt_segment, length)


def _fill_completions(arrays: _Arrays, responses: Responses, first: int) -> None:
    """Fills completion_positions, predictor_positions, completion_slots [microbatches, C], in the order of slots."""
    responses = responses[np.lexsort((responses.slot, responses.microbatch))]
    lengths = responses.length
    microbatch = np.repeat(responses.microbatch - first, lengths)
    index = microbatch, _count_within(microbatch)
    positions = ragged(responses.start, lengths)
    predictors = positions - 1
    # The first token of a response is predicted by the end of its prompt, which need not be right before it.
    predictors[np.cumsum(lengths) - lengths] = responses.predictor
    arrays["completion_positions"][index] = positions
    arrays["predictor_positions"][index] = predictors
    arrays["completion_slots"][index] = np.repeat(responses.slot, lengths)


def _fill_responses(
    arrays: _Arrays, responses: Responses, corpus: Corpus, first: int, ref_logps: RefLogps | None
) -> None:
    """Fills the arrays [microbatches, S]."""
    index = responses.microbatch - first, responses.slot
    arrays["lengths"][index] = responses.length
    arrays["ratings"][index] = corpus.ratings[responses.response]
    if ref_logps is not None:
        arrays["ref_logps"][index] = ref_logps(responses.question, responses.response)
    arrays["desirable"][index] = responses.desirable
    arrays["response_weights"][index] = responses.weight


def _fill_units(arrays: _Arrays, plan: StepPlan, first: int, end: int) -> None:
    """Fills pairs and lists with their weights."""
    pairs = plan.pairs[_within(plan.pairs.microbatch, first, end)]
    index = pairs.microbatch - first, _count_within(pairs.microbatch - first)
    arrays["pairs"][index] = np.stack([pairs.chosen, pairs.rejected], 1)
    arrays["pair_weights"][index] = pairs.weight
    lists = [entry for entry in plan.lists if first <= entry.microbatch < end]
    microbatch = np.asarray([entry.microbatch - first for entry in lists], np.int64)
    for number, nth, (_, slots, weight) in zip(microbatch, _count_within(microbatch), lists):
        arrays["groups"][number, nth, : len(slots)] = slots
        arrays["group_mask"][number, nth, : len(slots)] = True
        arrays["group_weights"][number, nth] = weight


def _within(values: Int64[np.ndarray, " n"], first: int, end: int) -> np.ndarray:
    return (values >= first) & (values < end)


def _count_within(ids: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """0, 1, 2, ... within each value of an array of small integers, in the order of its elements."""
    order = np.argsort(ids, kind="stable")
    counts = np.bincount(ids)
    nth = np.empty(len(ids), np.int64)
    nth[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    return nth
