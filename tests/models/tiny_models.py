"""Tiny models of every family, as tests/make_golden_models.py made them."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import care_jax.models as models

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "models"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir())
ROWS, LENGTH = 2, 48


@dataclasses.dataclass(frozen=True)
class Tiny:
    """One golden model, with its logits in one compiled shape [ROWS, LENGTH]."""

    name: str
    folder: pathlib.Path
    model: models.Decoder
    params: Any
    golden: dict[str, np.ndarray]
    apply: Any

    def logits(self, segments: list[list[dict[str, Any]]]) -> np.ndarray:
        """Returns the logits of rows of segments {"tokens"[, "id", "prompt", "start"]}, each row padded to LENGTH."""
        arrays = np.zeros((4, ROWS, LENGTH), np.int32)
        for row, parts in enumerate(segments):
            place = 0
            for number, part in enumerate(parts, 1):
                size = len(part["tokens"])
                span = (row, slice(place, place + size))
                segment = part.get("id", number)
                arrays[0][span] = part["tokens"]
                arrays[1][span] = part.get("start", 0) + np.arange(size)
                arrays[2][span] = segment
                arrays[3][span] = part.get("prompt", segment)
                place += size
        return np.asarray(self.apply(self.params, *jnp.asarray(arrays)))


@functools.cache
def tiny_model(name: str) -> Tiny:
    model, params = models.from_pretrained(GOLDEN / name)
    apply = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))
    with np.load(GOLDEN / name / "golden.npz") as file:
        golden = dict(file)
    return Tiny(name, GOLDEN / name, model, params, golden, apply)
