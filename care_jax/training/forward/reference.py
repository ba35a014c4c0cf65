"""The reference of a run: its logps computed before the first step, or its weights held beside the policy's."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from care_jax.config import Config
from care_jax.data.packing.plans import Batch
from care_jax.distributed import say
from care_jax.evaluation.model import local_folder
from care_jax.training.data import Prepared, Sequence_
from care_jax.training.errors import RunFailed
from care_jax.training.forward.cache import ReferenceCache, fingerprint
from care_jax.training.forward.passes import ForwardPass
from care_jax.training.objective import Objective
from care_jax.training.state import Built, load_model


@dataclasses.dataclass(frozen=True)
class Reference:
    """needed: the loss has a reference. own: it is the start of the policy. params: None where all is computed."""

    needed: bool
    own: bool
    precomputed: bool
    params: Any
    data: Prepared
    forward: ForwardPass

    def logps(self, sequences: Sequence[Sequence_]) -> np.ndarray | None:
        """Reference logps [len(sequences)] float32, or None for a loss without a reference."""
        if not self.needed:
            return None
        return self.data.values(sequences) if self.precomputed else self.forward.run(sequences, {"params": self.params})

    def into(self, batch: Batch) -> Batch:
        """The batch with reference logps, where they are computed at every step."""
        if self.params is None:
            return batch
        return self.forward.with_reference(batch, {"params": self.params})

    @property
    def holds_start(self) -> bool:
        """Whether the starting weights must outlive the making of the state."""
        return self.own and self.params is not None


def reference(
    config: Config,
    objective: Objective,
    built: Built,
    data: Prepared,
    forward: ForwardPass,
    folder: pathlib.Path,
    mesh: jax.sharding.Mesh,
) -> Reference:
    """One pass over the distinct responses that the steps to be run and the evaluation need, unless it is cached.

    The reference is the starting weights, unless `reference.path` names another model. Fills `data.ref_logps`.
    """
    own = config.reference.path is None
    precomputed = objective.needs_ref and config.reference.mode == "precompute"
    params = built.params if objective.needs_ref else None
    if objective.needs_ref and config.reference.path is not None:
        _, params = load_model(config, mesh, local_folder(config.reference.path))
    if precomputed:
        weights = built.weights if own else fingerprint(params)
        key = {"weights": weights, "dtype": config.model.dtype, "attention": config.model.attention}
        cache = ReferenceCache(folder / "reference", key)
        ran = forward.fill(cache, data.sequences, {"params": params})
        say(f"reference: {len(data.sequences)} sequences, {ran} microbatches run, the rest from {cache.folder}")
        values = cache.values(forward.digests(data.sequences))
        data.ref_logps = dict(zip(data.sequences, values.tolist()))
        _check_finite(data)
        params = None
    return Reference(objective.needs_ref, own, precomputed, params, data, forward)


def _check_finite(data: Prepared) -> None:
    """Raises RunFailed naming the questions whose reference is no number: nothing could be learned against it."""
    assert data.ref_logps is not None
    bad = [question for (question, _), value in data.ref_logps.items() if not math.isfinite(value)]
    if bad:
        shown = ", ".join(repr(data.corpus.key(question)) for question in list(dict.fromkeys(bad))[:3])
        raise RunFailed(
            f"the reference's logps of {len(bad)} of {len(data.ref_logps)} responses are not finite, the first of "
            f"question {shown}: the weights of the reference, or model.dtype, cannot be right"
        )
