"""Token rows for scoring choices: each prompt is in a row once, and the tokens of its choices follow it.

If prompts whose choices are single tokens (option letters) begin alike, as after the same examples, the shared
beginning is in a row once too, followed by the rest of each prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from care_jax.data.packing.capacities import round_up

_MIN_WIDTH, _USUAL_MAX_WIDTH = 256, 1024  # tokens per row; the maximum holds if no prompt is longer
_SHARED_PER_ROW = 4  # rows may be this many times as long as the longest shared beginning
_MIN_SHARED = 32  # tokens of a beginning that is worth sharing
_TOKENS_PER_BATCH = 2048  # approximately


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """The token ids of a prompt, and those of each of its choices."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]


class Predictor(NamedTuple):
    """The place in a block of the token whose hidden state predicts a target. branch: -1 is the stem."""

    branch: int
    offset: int


class ScoredChoice(NamedTuple):
    """A choice in a block. item: number of its item. predictors: one per token of the choice."""

    item: int
    tokens: tuple[int, ...]
    predictors: tuple[Predictor, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens that stay together in a row: a stem, then branches, each of which sees the stem and itself."""

    stem: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    choices: tuple[ScoredChoice, ...]

    @property
    def length(self) -> int:
        return len(self.stem) + sum(map(len, self.branches))

    @property
    def targets(self) -> int:
        return sum(len(choice.tokens) for choice in self.choices)


class Family(NamedTuple):
    """Items whose prompts share their first `shared` tokens; 0 for an item alone."""

    items: list[int]
    shared: int


class RowArrays(NamedTuple):
    """A batch of rows [B, T] and what is scored in them [B, C]. Segment 0 is padding.

    prompts: the segment of the stem that each token sees. places: the positions in the row that predict the targets.
    """

    tokens: Int[np.ndarray | jax.Array, "B T"]
    positions: Int[np.ndarray | jax.Array, "B T"]
    segments: Int[np.ndarray | jax.Array, "B T"]
    prompts: Int[np.ndarray | jax.Array, "B T"]
    places: Int[np.ndarray | jax.Array, "B C"]
    targets: Int[np.ndarray | jax.Array, "B C"]


@dataclass(frozen=True)
class RowPlan:
    """All rows, and the shape of the batches that they are computed in."""

    rows: list[list[Block]]
    batch_size: int
    width: int
    capacity: int


def plan_rows(items: Sequence[EncodedItem], hidden: int, shards: int) -> RowPlan:
    """Lays the items out in rows. hidden: size of the hidden states; shards: the batch size is a multiple of it."""
    families = find_families(items)
    width = _best_width(items, families, hidden)
    rows = pack_blocks(make_blocks(items, families, width), width)
    # The same number of rows in every batch: otherwise the last batch would be half padding.
    batches = max(1, round(len(rows) * width / _TOKENS_PER_BATCH))
    batch_size = round_up(max(1, -(-len(rows) // batches)), shards)
    capacity = round_up(max((sum(block.targets for block in row) for row in rows), default=1), 8)
    return RowPlan(rows, batch_size, width, capacity)


def find_families(items: Sequence[EncodedItem]) -> list[Family]:
    """Groups items whose prompts begin alike for at least half of their length."""
    alone = [number for number, item in enumerate(items) if any(len(choice) > 1 for choice in item.choices)]
    families = [Family([number], 0) for number in alone]
    rest = sorted(set(range(len(items))) - set(alone), key=lambda number: items[number].prompt)
    groups: list[Family] = []
    for number in rest:
        prompt = items[number].prompt
        if groups:
            members, shared = groups[-1]
            # Every branch keeps at least one token: the one that predicts.
            most = min(shared, len(prompt) - 1)
            first = items[members[0]].prompt
            alike = next((at for at in range(most) if prompt[at] != first[at]), most)
            if alike >= max(_MIN_SHARED, shared / 2, len(prompt) / 2):
                members.append(number)
                groups[-1] = Family(members, alike)
                continue
        groups.append(Family([number], len(prompt) - 1))
    return families + [Family(members, shared if len(members) > 1 else 0) for members, shared in groups]


def make_blocks(items: Sequence[EncodedItem], families: Sequence[Family], width: int) -> list[Block]:
    """Returns the families as blocks of at most `width` tokens (a prompt that is longer has a block of its own).

    The last token of a choice is only predicted, so it is in no branch.
    """
    blocks: list[Block] = []
    for numbers, shared in families:
        if shared:
            blocks += _shared_blocks(items, numbers, shared, width)
        else:
            blocks += [_single_block(items[number], number) for number in numbers]
    return blocks


def _single_block(item: EncodedItem, number: int) -> Block:
    """Returns a block whose stem is the prompt; the tokens of each choice are a branch."""
    end = Predictor(-1, len(item.prompt) - 1)
    choices = tuple(
        ScoredChoice(number, choice, (end, *(Predictor(branch, offset) for offset in range(len(choice) - 1))))
        for branch, choice in enumerate(item.choices)
    )
    return Block(item.prompt, tuple(choice[:-1] for choice in item.choices), choices)


def _shared_blocks(items: Sequence[EncodedItem], numbers: Sequence[int], shared: int, width: int) -> list[Block]:
    """Returns blocks whose stem is the shared beginning; the rest of a prompt is a branch. Its last token predicts."""
    parts: list[tuple[list[tuple[int, ...]], list[ScoredChoice]]] = []  # branches and choices of each block
    room = 0
    for number in numbers:
        branch = items[number].prompt[shared:]
        if not parts or len(branch) > room:
            parts.append(([], []))
            room = width - shared
        branches, choices = parts[-1]
        end = Predictor(len(branches), len(branch) - 1)
        choices += [ScoredChoice(number, choice, (end,)) for choice in items[number].choices]
        branches.append(branch)
        room -= len(branch)
    stem = items[numbers[0]].prompt[:shared]
    return [Block(stem, tuple(branches), tuple(choices)) for branches, choices in parts]


def _best_width(items: Sequence[EncodedItem], families: Sequence[Family], hidden: int) -> int:
    """Returns the row length that costs least.

    Longer rows have less padding, but cost more attention: 4 x width x hidden operations per token and layer, besides
    about 24 x hidden^2.
    """
    longest = max((block.length for block in make_blocks(items, families, 0)), default=0)
    least = round_up(max(_MIN_WIDTH, longest), 64)
    most = max(least, _USUAL_MAX_WIDTH, _SHARED_PER_ROW * max((shared for _, shared in families), default=0))
    step = max(1, len(families) // 256)
    sample = [Family(numbers[:256], shared) for numbers, shared in families[::step]]

    def cost(width: int) -> float:
        return len(pack_blocks(make_blocks(items, sample, width), width)) * width * (1 + width / (6 * hidden))

    fine = range(least, min(most, _USUAL_MAX_WIDTH) + 1, 64)
    coarse = range(max(least, _USUAL_MAX_WIDTH), most + 1, 256)
    return min((*fine, *coarse), key=cost)


def pack_blocks(blocks: Sequence[Block], width: int) -> list[list[Block]]:
    """Returns rows of at most `width` tokens: the longest block first, each into the row with the least room left."""
    rows: list[list[Block]] = []
    rows_by_room: list[list[int]] = [[] for _ in range(width + 1)]
    for block in sorted(blocks, key=lambda block: -block.length):
        room = next((room for room in range(block.length, width + 1) if rows_by_room[room]), None)
        if room is None:
            room, row = width, len(rows)
            rows.append([])
        else:
            row = rows_by_room[room].pop()
        rows[row].append(block)
        rows_by_room[room - block.length].append(row)
    return rows


def fill_rows(rows: Sequence[Sequence[Block]], size: int, width: int, capacity: int) -> RowArrays:
    """Returns a batch of `size` rows of `width` tokens and `capacity` targets; missing rows are padding."""
    tokens, positions, segments, prompts = (np.zeros((size, width), np.int32) for _ in range(4))
    places, targets = (np.zeros((size, capacity), np.int32) for _ in range(2))
    for row, blocks in enumerate(rows):
        at = slot = segment = 0
        for block in blocks:
            starts, stem = [], segment + 1
            for first, ids in ((0, block.stem), *((len(block.stem), branch) for branch in block.branches)):
                segment += 1
                end = at + len(ids)
                tokens[row, at:end], positions[row, at:end] = ids, first + np.arange(len(ids))
                segments[row, at:end], prompts[row, at:end] = segment, stem
                starts.append(at)
                at = end
            for choice in block.choices:
                end = slot + len(choice.tokens)
                places[row, slot:end] = [starts[branch + 1] + offset for branch, offset in choice.predictors]
                targets[row, slot:end] = choice.tokens
                slot = end
    return RowArrays(tokens, positions, segments, prompts, places, targets)
