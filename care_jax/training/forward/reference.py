"""The reference of a run: its logps are computed before the first step, or at every step by weights kept for it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from care_jax.data.corpus import SequenceId
from care_jax.data.packing.batch import Batch
from care_jax.distributed import say
from care_jax.evaluation.model import local_folder
from care_jax.models.arch import Params
from care_jax.training.context import RunContext
from care_jax.training.data import RunData
from care_jax.training.errors import RunFailed
from care_jax.training.forward.cache import ReferenceCache, fingerprint
from care_jax.training.forward.passes import ForwardPass
from care_jax.training.state import InitialWeights, load_model


@dataclasses.dataclass(frozen=True)
class Reference:
    """The frozen model with which a loss compares the policy: gives the logps of responses under that model.

    is_initial_policy: whether it has the policy's initial weights. table: the logps computed before the first step, or
    None. params: the weights that compute them at every step, or None. Both are None for a loss without a reference.
    """

    forward: ForwardPass
    is_initial_policy: bool
    table: dict[SequenceId, float] | None = None
    params: Params | None = None

    @property
    def precomputed(self) -> bool:
        return self.table is not None

    @property
    def needed(self) -> bool:
        return self.precomputed or self.params is not None

    @property
    def keeps_initial_weights(self) -> bool:
        """Whether the initial weights are needed after the state was made: they compute the logps at every step."""
        return self.is_initial_policy and self.params is not None

    def logps_of(self, sequences: Sequence[SequenceId]) -> np.ndarray | None:
        """Returns reference logps [len(sequences)] float32, or None for a loss without a reference."""
        if self.table is not None:
            return np.asarray([self.table[sequence] for sequence in sequences], np.float32)
        return None if self.params is None else self.forward.run(sequences, {"params": self.params})

    def lookup(self, questions: np.ndarray, responses: np.ndarray) -> np.ndarray:
        """Returns precomputed logps [n] float32. questions, responses: ids [n] of the corpus."""
        logps = self.logps_of(list(zip(questions.tolist(), responses.tolist())))
        assert logps is not None
        return logps

    def add_logps(self, batch: Batch) -> Batch:
        """Returns the batch (on the devices) with reference logps, which are computed here if they are not yet."""
        if self.params is None:
            return batch
        mismatched = None if batch.mismatched is None else self.add_logps(batch.mismatched)
        ref_logps = self.forward.program({"params": self.params}, dataclasses.replace(batch, mismatched=None))
        return dataclasses.replace(batch, ref_logps=ref_logps, mismatched=mismatched)


def compute_reference(run: RunContext, weights: InitialWeights, data: RunData, forward: ForwardPass) -> Reference:
    """Computes the logps of the distinct responses that the steps and the evaluation need, unless they are cached.

    The reference is the initial weights, unless `reference.path` names another model.
    """
    config, path = run.config, run.config.reference.path
    is_initial_policy = path is None
    if not run.objective.needs_ref:
        return Reference(forward, is_initial_policy)
    params = weights.params if path is None else load_model(config, run.mesh, local_folder(path))[1]
    if config.reference.mode == "online":
        return Reference(forward, is_initial_policy, params=params)
    weights_fingerprint = weights.fingerprint if is_initial_policy else fingerprint(params)
    key = {"weights": weights_fingerprint, "dtype": config.model.dtype, "attention": config.model.attention}
    cache = ReferenceCache(run.directory.folder / "reference", key)
    ran = forward.fill(cache, data.sequences, {"params": params})
    say(f"reference: {len(data.sequences)} sequences, {ran} microbatches run, the rest from {cache.folder}")
    values = cache.values(forward.digests(data.sequences))
    table = dict(zip(data.sequences, values.tolist()))
    _check_finite(table, data)
    return Reference(forward, is_initial_policy, table=table)


def _check_finite(table: dict[SequenceId, float], data: RunData) -> None:
    """Raises RunFailed naming the questions whose reference logps are not finite: nothing could be learned."""
    bad = [question for (question, _), value in table.items() if not math.isfinite(value)]
    if bad:
        shown = ", ".join(repr(data.corpus.key(question)) for question in list(dict.fromkeys(bad))[:3])
        raise RunFailed(
            f"the reference's logps of {len(bad)} of {len(table)} responses are not finite, the first of "
            f"question {shown}: the weights of the reference, or model.dtype, cannot be right"
        )
