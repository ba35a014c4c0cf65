"""From microbatches that the packer filled to where every segment and every token stands. No loop over responses."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from care_jax.data.packing.bins import Bin


def lay_out(bins: Sequence[Bin], row_length: int, share: bool) -> tuple[list[list[int]], dict[str, Any]]:
    """Columns, segments and final slots (by row, then column), as the arrays of a `StepPlan`.

    share: a prompt stands once before a question's responses in a row, else before each. Returns
    order[microbatch][slot while packing] = final slot, and the arrays by name.
    """
    counts = [len(bin_.placed) for bin_ in bins]
    number = np.repeat(np.arange(len(bins)), counts)
    placed = [(*one, bin_.prompt_lengths[one[0]]) for bin_ in bins for one in bin_.placed]
    question, response, length, row, prompt = np.asarray(placed, np.int64).reshape(-1, 5).T
    nth = np.arange(len(placed))
    # A question's responses of a row stand together, where the first of them was placed.
    by_block = np.lexsort((nth, question, row, number))
    starts = _changes(number[by_block], row[by_block], question[by_block])
    first = np.empty_like(nth)
    first[by_block] = np.repeat(by_block[starts], np.diff([*starts, len(nth)]))
    order = np.lexsort((nth, first, row, number))
    number, question, response, length, row, prompt = (
        x[order] for x in (number, question, response, length, row, prompt)
    )
    before = np.asarray([0, *itertools.accumulate(counts)], np.int64)
    final = np.empty_like(nth)
    final[order] = nth - before[number]

    # Segments: a prompt before each block, or before each response, then the responses.
    heads = _changes(number, row, question) if share else np.arange(len(nth))
    block = np.repeat(np.arange(len(heads)), np.diff([*heads, len(nth)]))
    at_head, at_own = heads + np.arange(len(heads)), np.arange(len(nth)) + block + 1
    segments = np.full((len(nth) + len(heads), 9), -1, np.int64)
    for column, values in ((0, number), (1, row)):
        segments[at_own, column], segments[at_head, column] = values, values[heads]
    segments[at_own, 3], segments[at_head, 3] = length, prompt[heads]
    segments[at_head, 4], segments[at_own, 5] = question[heads], response
    in_row = np.cumsum(segments[:, 3]) - segments[:, 3]
    rows = _changes(segments[:, 0], segments[:, 1])
    row_of = np.repeat(np.arange(len(rows)), np.diff([*rows, len(segments)]))
    segments[:, 2] = in_row - in_row[rows][row_of]
    segments[:, 6] = (np.arange(len(segments)) - rows[row_of]) // (1 if share else 2) + 1
    segments[at_head, 7], segments[at_own, 7] = segments[at_head, 6], segments[at_head, 6][block]
    segments[at_head, 8], segments[at_own, 8] = 0, prompt
    base = row * row_length
    arrays: dict[str, Any] = {
        "sequences": np.stack([question, response], 1),
        "lengths": length,
        "microbatch": number,
        "slot": np.arange(len(nth)) - before[number],
        "start": base + segments[at_own, 2],
        "predictor": base + segments[at_head, 2][block] + prompt - 1,
        "segments": segments,
    }
    return [final[begin:end].tolist() for begin, end in itertools.pairwise(before)], arrays


def _changes(*columns: np.ndarray) -> Int64[np.ndarray, " runs"]:
    """Where a run of equal rows begins."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.flatnonzero(new)
