"""Batches laid out plainly, one sequence per row, with which the packer's batches are compared."""

import json
from dataclasses import dataclass

import numpy as np

from care_jax import models
from care_jax.data.packing.batch import Batch

TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def tiny_model(folder, **changes):
    """A two-layer Llama and its random weights."""
    file = folder / "config.json"
    file.write_text(json.dumps({**TINY, **changes}))
    model = models.from_config(file, dtype="float32")
    return model, models.init_params(model, 0)


@dataclass(frozen=True)
class Group:
    prompt: list[int]
    completions: list[list[int]]
    ratings: list[float]


def groups(count: int, responses: int = 3, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(1, 64, rng.integers(low, high)).tolist()

    return [
        Group(ids(3, 7), [ids(2, 9) for _ in range(responses)], [float(r) for r in range(responses)])
        for _ in range(count)
    ]


def plain_batch(parts: list[list[Group]], *, length: int = 16, rows: int = 12) -> Batch:
    """One microbatch for each part (empty ones last); every response in its own row, all rating-ordered pairs."""
    count, slots, tokens_each = len(parts), rows, rows * length
    pairs_each = max(sum(len(g.ratings) * (len(g.ratings) - 1) // 2 for g in part) for part in parts)
    groups_each, width = max(map(len, parts)), max(len(g.ratings) for part in parts for g in part)
    shape = (count, rows, length)
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    places, predictors = np.zeros((count, tokens_each), np.int32), np.zeros((count, tokens_each), np.int32)
    owners = np.full((count, tokens_each), slots, np.int32)
    lengths = np.ones((count, slots), np.int32)
    ratings = np.zeros((count, slots), np.float32)
    desirable, weights = np.zeros((count, slots), bool), np.zeros((count, slots), np.float32)
    pairs, pair_weights = np.zeros((count, pairs_each, 2), np.int32), np.zeros((count, pairs_each), np.float32)
    lists, mask = np.zeros((count, groups_each, width), np.int32), np.zeros((count, groups_each, width), bool)
    list_weights = np.zeros((count, groups_each), np.float32)
    for a, part in enumerate(parts):
        row = taken = pair = 0
        for g, group in enumerate(part):
            first = row
            for completion, rating in zip(group.completions, group.ratings):
                whole = group.prompt + completion
                tokens[a, row, : len(whole)] = whole
                positions[a, row, : len(whole)] = np.arange(len(whole))
                segments[a, row, : len(whole)] = 1
                at = row * length + len(group.prompt) + np.arange(len(completion))
                places[a, taken : taken + len(at)], predictors[a, taken : taken + len(at)] = at, at - 1
                owners[a, taken : taken + len(at)] = row
                taken += len(at)
                lengths[a, row], ratings[a, row] = len(completion), rating
                desirable[a, row], weights[a, row] = rating > 0, 1
                row += 1
            for i, better in enumerate(group.ratings):
                for j, worse in enumerate(group.ratings):
                    if better > worse:
                        pairs[a, pair], pair_weights[a, pair] = (first + i, first + j), 1
                        pair += 1
            lists[a, g, : len(group.ratings)] = first + np.arange(len(group.ratings))
            mask[a, g, : len(group.ratings)], list_weights[a, g] = True, 1
    return Batch(
        tokens=tokens,
        positions=positions,
        segment_ids=segments,
        prompt_segment_ids=segments,
        completion_positions=places,
        predictor_positions=predictors,
        completion_slots=owners,
        lengths=lengths,
        ratings=ratings,
        ref_logps=np.where(weights > 0, -10 - ratings, 0).astype(np.float32),
        desirable=desirable,
        response_weights=weights,
        pairs=pairs,
        pair_weights=pair_weights,
        groups=lists,
        group_mask=mask,
        group_weights=list_weights,
        n_microbatches=np.asarray(sum(map(bool, parts)), np.int32),
    )
