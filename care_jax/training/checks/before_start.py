"""Cheap checks, before the first step and of its numbers, for mistakes that spoil preference training silently."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from care_jax import losses
from care_jax.config import Config
from care_jax.data.chat import Tokenizer
from care_jax.data.packing.batch import Batch
from care_jax.errors import UserError, nearest
from care_jax.training import objective as objectives
from care_jax.training.data import RunData
from care_jax.training.errors import RunFailed
from care_jax.training.evaluation.held_out import GROUPED, MEASURED
from care_jax.training.forward.reference import Reference
from care_jax.training.objective import Objective
from care_jax.training.step import Variables


class CheckFailed(RunFailed):
    """The run would train on numbers that cannot be right; the message says which and by how much."""


def check_whole_step(config: Config, objective: Objective) -> None:
    """Raises UserError if a loss couples all pairs of a step and a step counts groups: the number of pairs is not
    fixed then.
    """
    if objective.whole_step and objective.view == "pairs" and config.batch.unit == "group":
        names = ", ".join(loss.name for loss in config.losses if losses.spec(losses.get(loss.name)).whole_step)
        raise UserError(
            f"batch.unit: found group, expected pair: loss {names} needs all pairs of a step at once, and a step of "
            "groups has no fixed number of pairs"
        )


def check_best_metric(config: Config, data: RunData) -> None:
    """Raises UserError if `checkpoint.best` names no metric of the evaluation."""
    best = config.checkpoint.best
    if best is None:
        return
    if data.held_out is None:
        raise UserError(f"checkpoint.best: found {best!r}, but data.eval holds no question to evaluate on")
    names = ("loss", *MEASURED, *(f"{group}/{name}" for group in data.held_out.members for name in GROUPED))
    valid = [f"eval/{name}" for name in names]
    if best not in valid:
        raise UserError(f"checkpoint.best: found {best!r}{nearest(best, valid)}, expected one of {', '.join(valid)}")


def check_tokens(data: RunData, tokenizer: Tokenizer) -> None:
    """Raises UserError if a rendered prompt begins with more than one BOS token, and names the question.

    Prompts that came as token ids are used as they are.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return
    for question in data.rendered_questions():
        prompt = data.corpus.prompts[question]
        count = int(np.count_nonzero(prompt == bos))
        if count > 1 and prompt[0] == bos and prompt[1] == bos:
            raise UserError(
                f"{data.corpus.key(question)!r}: the prompt begins with {count} BOS tokens, expected exactly one "
                "(does the chat template add one to the tokenizer's?)"
            )


def check_reference(reference: Reference, data: RunData, variables: Variables) -> None:
    """Raises CheckFailed if the first microbatch of the reference pass, computed again with the policy's weights, does
    not give the stored logps bit for bit.
    """
    members, logps = reference.forward.first_microbatch(data.sequences, variables)
    sequences = [data.sequences[index] for index in members]
    # If the same tokens occur twice, the cache holds the value of the first.
    _, first = np.unique([digest.hex() for digest in reference.forward.digests(sequences)], return_index=True)
    stored, logps = reference.lookup(*np.asarray(sequences).T)[first], logps[first]
    if not np.array_equal(stored, logps):
        worst = float(np.max(np.abs(stored - logps)))
        raise CheckFailed(f"reference logps are not reproduced bit for bit (largest difference {worst:.3g})")


def check_first_step(
    values: Mapping[str, float], log_ratio: float, dtype: str, objective: Objective, batch: Batch
) -> None:
    """Raises CheckFailed if the first step's numbers do not fit a policy that is still its own reference: log-ratios
    are 0 up to rounding (the reference pass packs its batches differently), and the loss is that of equal logps.

    values: the metrics of the step; log_ratio: the mean of |log-ratio|; batch: the step's arrays on the devices.
    """
    sides = (abs(values[f"logps/{side}"]) for side in ("chosen", "rejected"))
    logps = max(filter(math.isfinite, sides), default=0.0)
    # Twice the tolerance of a mean margin: a mean of absolute values does not cancel.
    allowed = 2 * (2e-6 * logps + 1e-4 if dtype == "float32" else 1e-3 * logps)
    if log_ratio > allowed:
        raise CheckFailed(
            f"step 1: the policy's logps differ from its own reference's by {log_ratio:.3g} in the mean; "
            f"rounding explains at most {allowed:.3g}"
        )
    if objective.whole_step:
        return  # such a loss takes the units without padding, which only the step knows
    arrays = dataclasses.replace(batch, mismatched=None)
    expected, slope = (float(x) for x in jax.jit(functools.partial(_loss_at_reference, objective))(arrays))
    # Twice again: the largest of the differences counts, not their mean.
    rounding = 2 * allowed * slope + 1e-4 * max(1.0, abs(expected))
    if abs(values["loss"] - expected) > rounding:
        raise CheckFailed(
            f"step 1: the loss is {values['loss']:.6g}; with the reference's logps in place of the policy's, which are "
            f"equal, it is {expected:.6g}; rounding explains at most {rounding:.3g}"
        )


def _loss_at_reference(objective: Objective, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns a step's loss with the reference's logps as the policy's, and how far it moves if each moves by 1."""
    flat = objectives.merge_microbatches(batch)
    denominators = objectives.sum_weights(objective, flat)

    def loss(logps: jax.Array) -> jax.Array:
        return objectives.compute_loss(objective, logps, flat, jnp.zeros(()), denominators)[0]

    value, slope = jax.value_and_grad(loss)(flat.ref_logps)
    return value, jnp.sum(jnp.abs(slope))
