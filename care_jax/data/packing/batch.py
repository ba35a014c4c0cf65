"""The batch of one optimizer step, and the static sizes that all batches of a run share."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax import struct

UNLIMITED = 2**60
# numpy on the host, jax.Array in the step, a shape in the plan of a run, a sharding, or a leaf of another tree map.
Array = Any


class ArraySpec(NamedTuple):
    """What an array of a batch looks like.

    dimensions: sizes after the axis of microbatches, as names of `BatchShape` fields or numbers. padding: the value
    of unused entries, in the same way.
    """

    dtype: type
    dimensions: tuple[str | int, ...]
    padding: str | int = 0


def _array(dtype: type, *dimensions: str | int, padding: str | int = 0) -> Any:
    return struct.field(default=None, metadata={"spec": ArraySpec(dtype, dimensions, padding)})


@struct.dataclass
class Batch:
    """The microbatches of one step. Each array has an axis of microbatches and then the dimensions named here.

    Slots number the responses of a microbatch, flat positions (row * row_length + column) its tokens. An array that
    is not needed may be None: held-out metrics have no rows of tokens.
    """

    tokens: Array = _array(np.int32, "rows", "row_length")
    positions: Array = _array(np.int32, "rows", "row_length")  # a response continues from its prompt's end
    segment_ids: Array = _array(np.int32, "rows", "row_length")  # 0 is padding
    prompt_segment_ids: Array = _array(np.int32, "rows", "row_length")  # the other segment that a token attends to
    completion_positions: Array = _array(np.int32, "completion_tokens")  # flat position of each completion token
    predictor_positions: Array = _array(np.int32, "completion_tokens")  # flat position of the token that predicts it
    completion_slots: Array = _array(np.int32, "completion_tokens", padding="responses")  # slot of its response
    lengths: Array = _array(np.int32, "responses", padding=1)  # completion tokens
    ratings: Array = _array(np.float32, "responses")  # 0 if there is none
    ref_logps: Array = _array(np.float32, "responses")
    desirable: Array = _array(bool, "responses")
    response_weights: Array = _array(np.float32, "responses")  # unit weights of the unpaired view
    pairs: Array = _array(np.int32, "pairs", 2)  # slots of chosen and rejected
    pair_weights: Array = _array(np.float32, "pairs")
    groups: Array = _array(np.int32, "lists", "width")  # slots of a list's responses
    group_mask: Array = _array(bool, "lists", "width")
    group_weights: Array = _array(np.float32, "lists")
    n_microbatches: Array = None  # int32 scalar; the microbatches that are not empty
    mismatched: "Batch | None" = None  # KTO: the mismatched completions of the step, each of weight 1


ARRAYS: dict[str, ArraySpec] = {
    field.name: field.metadata["spec"] for field in dataclasses.fields(Batch) if "spec" in field.metadata
}
ROW_ARRAYS = tuple(name for name, spec in ARRAYS.items() if spec.dimensions[0] == "rows")


@dataclass(frozen=True)
class BatchShape:
    """The static sizes of a batch, the same in every step of a run, so that the step is compiled once.

    rows, row_length, responses, completion_tokens, pairs, lists: capacity of a microbatch. width: responses per list.
    microbatches: as many as the fullest step needs; 0 until `pipeline.set_microbatches` counts them.
    packing, share_responses, share_prompts: the configuration keys of block `batch`: sequences share rows; a response
    that several units of the step need is laid out once; a prompt comes once per row.
    """

    rows: int
    row_length: int
    responses: int = UNLIMITED
    completion_tokens: int = UNLIMITED
    pairs: int = 1
    lists: int = 1
    width: int = 1
    microbatches: int = 0
    packing: bool = True
    share_responses: bool = True
    share_prompts: bool = True

    def unlimited(self) -> "BatchShape":
        """The same rows for any number of responses, completion tokens, pairs and lists."""
        free = UNLIMITED
        return dataclasses.replace(self, responses=free, completion_tokens=free, pairs=free, lists=free)

    def size(self, dimension: str | int) -> int:
        """The value of a field by its name; a number is returned as it is."""
        return getattr(self, dimension) if isinstance(dimension, str) else dimension

    def array_shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array of `Batch`."""
        return self.microbatches, *map(self.size, ARRAYS[name].dimensions)

    def padding_arrays(self) -> dict[str, np.ndarray]:
        """All arrays of an empty batch, by name."""
        return {
            name: np.full(self.array_shape(name), self.size(spec.padding), spec.dtype) for name, spec in ARRAYS.items()
        }
