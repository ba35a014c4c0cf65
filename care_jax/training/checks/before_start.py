"""What must hold before a run is let go on: cheap checks of the mistakes that spoil preference training in silence."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from care_jax import losses
from care_jax.config import Config
from care_jax.data.packing.plans import Batch
from care_jax.errors import UserError, nearest
from care_jax.training import objective as objectives
from care_jax.training.data import RunData
from care_jax.training.errors import RunFailed
from care_jax.training.evaluation.held_out import GROUPED, MEASURED
from care_jax.training.forward.reference import Reference
from care_jax.training.objective import Objective
from care_jax.training.step import Variables

LOGPS = ("logps/chosen", "logps/rejected")


class CheckFailed(RunFailed):
    """The run would train on numbers that cannot be right; the message says which and by how much."""


def check_whole_step(config: Config, objective: Objective) -> None:
    """A loss that couples the pairs of a step needs to know how many there are. Raises UserError for groups."""
    if objective.whole_step and objective.view == "pairs" and config.batch.unit == "group":
        names = ", ".join(one.name for one in config.losses if losses.spec(losses.get(one.name)).whole_step)
        raise UserError(
            f"batch.unit: found group, expected pair: loss {names} sees all pairs of a step at once, and a step of "
            "groups holds no fixed number of them"
        )


def check_best_metric(config: Config, data: RunData) -> None:
    """`checkpoint.best` names a number of the evaluation. Raises UserError where none will be."""
    best = config.checkpoint.best
    if best is None:
        return
    if data.held_out is None:
        raise UserError(f"checkpoint.best: found {best!r}, but data.eval holds no question to evaluate on")
    names = ("loss", *MEASURED, *(f"{group}/{name}" for group in data.held_out.labels for name in GROUPED))
    valid = [f"eval/{name}" for name in names]
    if best not in valid:
        raise UserError(f"checkpoint.best: found {best!r}{nearest(best, valid)}, expected one of {', '.join(valid)}")


def check_tokens(data: RunData, tokenizer: Any) -> None:
    """Exactly one BOS in every prompt that was rendered, none in a completion; a completion ends its turn.

    Token ids that the user brought are used as they are. Raises UserError naming the question.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return
    for question in data.rendered_questions():
        prompt = data.corpus.prompt(question)
        count = int(np.count_nonzero(prompt == bos))
        if count > 1 and prompt[0] == bos and prompt[1] == bos:
            raise UserError(
                f"{data.corpus.key(question)!r}: the prompt begins with {count} BOS tokens; exactly one is expected "
                "(does the chat template add one to the tokenizer's?)"
            )


def check_reference(reference: Reference, data: RunData, variables: Variables) -> None:
    """One microbatch of the reference's own layout, run again with the policy's weights: equal to the bit."""
    members, logps = reference.forward.first_microbatch(data.sequences, variables)
    sequences = [data.sequences[index] for index in members]
    # Of the same tokens twice, the cache holds what the first gave.
    _, first = np.unique([one.hex() for one in reference.forward.digests(sequences)], return_index=True)
    stored, logps = reference.lookup(*np.asarray(sequences).T)[first], logps[first]
    if not np.array_equal(stored, logps):
        worst = float(np.max(np.abs(stored - logps)))
        raise CheckFailed(f"reference logps do not repeat to the bit (largest difference {worst:.3g})")


def check_first_step(
    values: Mapping[str, float], log_ratio: float, dtype: str, objective: Objective, batch: Batch
) -> None:
    """At the first step the policy is its own reference: log-ratios are 0 within the rounding of another layout, and
    the loss is what the loss function gives for equal logps. batch: the step's, on the devices.
    """
    logps = max((abs(values[name]) for name in LOGPS if math.isfinite(values[name])), default=0.0)
    # Twice the tolerance of a mean margin: a mean of absolute values does not cancel.
    allowed = 2 * (2e-6 * logps + 1e-4 if dtype == "float32" else 1e-3 * logps)
    if log_ratio > allowed:
        raise CheckFailed(
            f"step 1: the policy's logps differ from its own reference's by {log_ratio:.3g} in the mean; "
            f"at most {allowed:.3g} is rounding"
        )
    if objective.whole_step:
        return  # sees its units apart from padding, which only the step does
    arrays = dataclasses.replace(batch, mismatched=None)
    expected, slope = (float(one) for one in jax.jit(functools.partial(_at_the_reference, objective))(arrays))
    # Twice again: the largest of the differences counts, not their mean.
    rounding = 2 * allowed * slope + 1e-4 * max(1.0, abs(expected))
    if abs(values["loss"] - expected) > rounding:
        raise CheckFailed(
            f"step 1: the loss is {values['loss']:.6g}; with the reference's logps in place of the policy's, which are "
            f"equal, it is {expected:.6g}, and at most {rounding:.3g} is rounding"
        )


def _at_the_reference(objective: Objective, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """A step's loss where the policy's logps are the reference's, and how far it moves if each moves by 1."""
    flat = objectives.flatten(batch)
    totals = objectives.denominators(objective, flat)

    def loss(logps):
        return objectives.evaluate(objective, logps, flat, jnp.zeros(()), totals)[0]

    value, slope = jax.value_and_grad(loss)(flat.ref_logps)
    return value, jnp.sum(jnp.abs(slope))
