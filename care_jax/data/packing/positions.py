"""Rows, columns and slots of everything in the microbatches that the packer filled. No loop over responses."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int64

from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.bins import Bin

T = TypeVar("T", bound="Columns")


@dataclass(frozen=True)
class Columns:
    """Columns of equal length. Indexing with a mask or with positions selects entries of all of them."""

    def __getitem__(self: T, entries: np.ndarray) -> T:
        return type(self)(**{field.name: getattr(self, field.name)[entries] for field in dataclasses.fields(self)})

    def __len__(self) -> int:
        return len(getattr(self, dataclasses.fields(self)[0].name))


@dataclass(frozen=True)
class Responses(Columns):
    """The responses of a plan. start: flat position (row * row_length + column) of its first token; predictor:
    position of the token that predicts it. weight, desirable: weight and label of its unit in the unpaired view.
    """

    question: Int64[np.ndarray, " n"]
    response: Int64[np.ndarray, " n"]
    length: Int64[np.ndarray, " n"]
    microbatch: Int64[np.ndarray, " n"]
    slot: Int64[np.ndarray, " n"]
    start: Int64[np.ndarray, " n"]
    predictor: Int64[np.ndarray, " n"]
    weight: Float32[np.ndarray, " n"]
    desirable: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Segments(Columns):
    """Runs of tokens: a prompt (question; response is -1) or a response (response id; question is -1).

    segment, prompt_segment: the ids of its tokens in `Batch`. position: position of its first token.
    """

    microbatch: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    column: Int64[np.ndarray, " n"]
    length: Int64[np.ndarray, " n"]
    question: Int64[np.ndarray, " n"]
    response: Int64[np.ndarray, " n"]
    segment: Int64[np.ndarray, " n"]
    prompt_segment: Int64[np.ndarray, " n"]
    position: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Pairs(Columns):
    """The pairs of a plan. chosen, rejected: slots in the microbatch."""

    microbatch: Int64[np.ndarray, " n"]
    chosen: Int64[np.ndarray, " n"]
    rejected: Int64[np.ndarray, " n"]
    weight: Float32[np.ndarray, " n"]

    @classmethod
    def of(cls, responses: Responses, pairs: Sequence[tuple[int, int]], weights: Sequence[float]) -> "Pairs":
        """From the indices of (chosen, rejected) in `responses`."""
        chosen, rejected = np.asarray(pairs, np.int64).reshape(-1, 2).T
        slots = responses.slot[chosen], responses.slot[rejected]
        return cls(responses.microbatch[chosen], *slots, np.asarray(weights, np.float32))


def lay_out(bins: Sequence[Bin], shape: BatchShape) -> tuple[Int64[np.ndarray, " n"], Responses, Segments]:
    """Returns the index of each packed response in the responses, and responses and segments by microbatch and row.

    If prompts are shared, a prompt comes once before a question's responses in a row, else before each of them.
    """
    row_length, share_prompts = shape.row_length, shape.share_prompts and shape.packing
    counts = np.asarray([len(bin_.placed) for bin_ in bins], np.int64)
    microbatch = np.repeat(np.arange(len(bins)), counts)
    placed = [(*entry, bin_.prompt_lengths[entry[0]]) for bin_ in bins for entry in bin_.placed]
    question, response, length, row, prompt = np.asarray(placed, np.int64).reshape(-1, 5).T
    nth = np.arange(len(placed))
    # The responses of a question in a row form a block, at the place of the one that was packed first.
    by_block = np.lexsort((nth, question, row, microbatch))
    starts = _run_starts(microbatch[by_block], row[by_block], question[by_block])
    first = np.empty_like(nth)
    first[by_block] = np.repeat(by_block[starts], np.diff([*starts, len(nth)]))
    order = np.lexsort((nth, first, row, microbatch))
    microbatch, question, response, length, row, prompt = (
        column[order] for column in (microbatch, question, response, length, row, prompt)
    )
    index_of = np.empty_like(nth)
    index_of[order] = nth

    # Each block, or each response, has a prompt before it.
    heads = _run_starts(microbatch, row, question) if share_prompts else np.arange(len(nth))
    block = np.repeat(np.arange(len(heads)), np.diff([*heads, len(nth)]))
    prompts, answers = heads + np.arange(len(heads)), nth + block + 1  # positions among the segments

    def column(of_prompts: np.ndarray | int, of_answers: np.ndarray | int) -> Int64[np.ndarray, " segments"]:
        values = np.empty(len(heads) + len(nth), np.int64)
        values[prompts], values[answers] = of_prompts, of_answers
        return values

    segment_microbatch, segment_row = column(microbatch[heads], microbatch), column(row[heads], row)
    segment_length = column(prompt[heads], length)
    before = np.cumsum(segment_length) - segment_length
    rows = _run_starts(segment_microbatch, segment_row)
    first_of_row = np.repeat(rows, np.diff([*rows, len(before)]))
    columns = before - before[first_of_row]
    ids = (np.arange(len(before)) - first_of_row) // (1 if share_prompts else 2) + 1
    segments = Segments(
        microbatch=segment_microbatch,
        row=segment_row,
        column=columns,
        length=segment_length,
        question=column(question[heads], -1),
        response=column(-1, response),
        segment=ids,
        prompt_segment=column(ids[prompts], ids[prompts][block]),
        position=column(0, prompt),
    )
    responses = Responses(
        question=question,
        response=response,
        length=length,
        microbatch=microbatch,
        slot=nth - (np.cumsum(counts) - counts)[microbatch],
        start=row * row_length + columns[answers],
        predictor=row * row_length + columns[prompts][block] + prompt - 1,
        weight=np.zeros(len(nth), np.float32),
        desirable=np.zeros(len(nth), bool),
    )
    return index_of, responses, segments


def _run_starts(*columns: np.ndarray) -> Int64[np.ndarray, " runs"]:
    """The positions at which a run of equal entries begins."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.flatnonzero(new)
