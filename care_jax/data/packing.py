"""The batch of one optimizer step: microbatches of packed rows, and where in them every response is."""

from typing import Any

from flax import struct

Array = Any  # numpy on the host, global jax.Array in the step


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
    ratings: Array  # [A, S] float32
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
