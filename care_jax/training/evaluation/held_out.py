"""Preference accuracy on held-out questions: the run's own loss, and all pairs, which compare across losses."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from care_jax.data.corpus import Corpus, SequenceId
from care_jax.data.packing.batch import Batch
from care_jax.data.preferences import Unit
from care_jax.textfiles import JsonObject
from care_jax.training import objective as objectives
from care_jax.training.objective import Objective

Owner = tuple[str, str | None, str | None]  # a question's key, culture and category

# What is measured over all held-out pairs, and by culture and category.
GROUPED = ("rewards/accuracies", "rewards/margins", "logps/accuracies")
MEASURED = (*GROUPED, "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out questions, laid out once: sequences to run, and numpy tables that turn their logps into metrics.

    units, pairs: one microbatch each without its leading axis, whose slots are positions in `sequences`; `units` are of
    the run's view and policy, `pairs` are all pairs. mismatched: positions in `sequences`. members: for each culture
    and category, which pairs belong to it. owners: the question of each pair.
    """

    sequences: tuple[SequenceId, ...]
    units: Batch
    pairs: Batch
    mismatched: Int32[np.ndarray, " mismatched"]
    members: dict[str, Bool[np.ndarray, " pairs"]]
    owners: tuple[Owner, ...] = ()


def hold_out(
    corpus: Corpus, units: Sequence[Unit], pair_units: Sequence[Unit], mismatched: Sequence[SequenceId]
) -> HeldOut:
    """Lays out the held-out questions.

    units: units of the run's view and policy; pair_units: units with all pairs at min_gap 1, whatever the loss.
    """
    positions: dict[SequenceId, int] = {}
    for unit in (*pair_units, *units):
        for response in unit.responses:
            positions.setdefault((unit.question, corpus.response_id(unit.question, response)), len(positions))
    for sequence in mismatched:
        positions.setdefault(sequence, len(positions))
    numbers = [unit.question for unit in pair_units for _ in unit.pairs]
    owners = tuple((q.key, q.culture, q.category) for q in (corpus.questions[number] for number in numbers))
    distinct = [corpus.questions[number] for number in sorted(set(numbers))]
    groups = dict.fromkeys(name for question in distinct for name in (question.culture, question.category) if name)
    return HeldOut(
        tuple(positions),
        _table(corpus, units, positions),
        _table(corpus, pair_units, positions),
        np.asarray([positions[sequence] for sequence in mismatched], np.int32),
        {group: np.asarray([group in owner[1:] for owner in owners], bool) for group in groups},
        owners,
    )


def _table(corpus: Corpus, units: Sequence[Unit], positions: dict[SequenceId, int]) -> Batch:
    """Fills the arrays of a Batch that an objective reads."""
    responses = np.asarray([response for _, response in positions], np.int64)
    slots = [[positions[unit.question, corpus.response_id(unit.question, r)] for r in unit.responses] for unit in units]
    pairs = [(members[c], members[r]) for unit, members in zip(units, slots) for c, r in unit.pairs]
    width = max(map(len, slots), default=0)
    groups, mask = np.zeros((len(units), width), np.int32), np.zeros((len(units), width), bool)
    desirable, weights = np.zeros(len(responses), bool), np.zeros(len(responses), np.float32)
    for row, (unit, members) in enumerate(zip(units, slots)):
        groups[row, : len(members)], mask[row, : len(members)] = members, True
        if unit.desirable is not None:
            desirable[members], weights[members] = unit.desirable, unit.weight
    return Batch(
        lengths=corpus.completion_lengths[responses].astype(np.int32),
        ratings=corpus.ratings[responses].astype(np.float32),
        ref_logps=np.zeros(len(responses), np.float32),
        desirable=desirable,
        response_weights=weights,
        pairs=np.asarray(pairs, np.int32).reshape(-1, 2),
        pair_weights=np.asarray([weight for unit in units for weight in unit.weights], np.float32),
        groups=groups,
        group_mask=mask,
        group_weights=np.asarray([unit.weight for unit in units], np.float32),
    )


def measure(
    objective: Objective,
    held_out: HeldOut,
    logps: Float[np.ndarray, " sequences"],
    ref_logps: Float[np.ndarray, " sequences"] | None,
) -> JsonObject:
    """Returns the metrics `eval/...` of a policy with these logps.

    If every margin is 0, since the policy is its own reference, accuracies of rewards mean nothing and are null.
    """
    inputs = _inputs(objective, held_out, logps, ref_logps)
    denominators = objectives.sum_weights(objective, inputs.units)
    loss, _ = objectives.compute_loss(objective, inputs.logps, inputs.units, inputs.kl, denominators)
    metrics: JsonObject = {} if inputs.kl is None else {"eval/kl": float(inputs.kl)}
    metrics["eval/loss"] = float(loss)

    columns = _pair_columns(objective, held_out, logps, inputs)
    metrics |= {f"eval/{name}": _mean(columns[name]) for name in MEASURED}
    for group, members in held_out.members.items():
        for name in GROUPED:
            metrics[f"eval/{group}/{name}"] = _mean(columns[name], members)
    return metrics


def by_question(
    objective: Objective,
    held_out: HeldOut,
    logps: Float[np.ndarray, " sequences"],
    ref_logps: Float[np.ndarray, " sequences"] | None,
) -> list[JsonObject]:
    """Returns for each held-out question `question culture category pairs rewards/accuracies logps/accuracies`."""
    columns = _pair_columns(objective, held_out, logps, _inputs(objective, held_out, logps, ref_logps))
    pairs: dict[Owner, list[int]] = {}
    for number, owner in enumerate(held_out.owners):
        pairs.setdefault(owner, []).append(number)
    return [
        {"question": key, "culture": culture, "category": category, "pairs": len(numbers)}
        | {name: _mean(columns[name], numbers) for name in ("rewards/accuracies", "logps/accuracies")}
        for (key, culture, category), numbers in pairs.items()
    ]


class _Inputs(NamedTuple):
    """What an objective reads, as jax arrays. kl: None if the loss does not name it."""

    units: Batch
    pairs: Batch
    logps: Float[Array, " sequences"]
    kl: Float[Array, ""] | None


def _inputs(objective: Objective, held_out: HeldOut, logps: np.ndarray, ref_logps: np.ndarray | None) -> _Inputs:
    reference = np.zeros_like(logps) if ref_logps is None else ref_logps
    units, pairs = (
        jax.tree.map(jnp.asarray, dataclasses.replace(table, ref_logps=reference))
        for table in (held_out.units, held_out.pairs)
    )
    values, kl = jnp.asarray(logps), None
    if objective.needs_kl:
        ratios = values[held_out.mismatched] - units.ref_logps[held_out.mismatched]
        kl = jnp.maximum(jnp.mean(ratios), 0)
    return _Inputs(units, pairs, values, kl)


def _pair_columns(
    objective: Objective, held_out: HeldOut, logps: Float[np.ndarray, " sequences"], inputs: _Inputs
) -> dict[str, Float[np.ndarray, " pairs"] | None]:
    """Returns a column for each of MEASURED; the accuracy of rewards is None if every pair is a tie.

    Responses between the labels have rewards too.
    """
    chosen, rejected = held_out.pairs.pairs[:, 0], held_out.pairs.pairs[:, 1]
    chosen_rewards, rejected_rewards = map(
        np.asarray, objectives.pair_rewards(objective, inputs.logps, inputs.pairs, inputs.kl)
    )
    per_token = logps / held_out.pairs.lengths
    right = (chosen_rewards > rejected_rewards).astype(np.float64)
    return {
        "rewards/accuracies": right if np.any(chosen_rewards != rejected_rewards) else None,
        "rewards/margins": chosen_rewards - rejected_rewards,
        "logps/accuracies": (per_token[chosen] > per_token[rejected]).astype(np.float64),
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "logps/chosen": logps[chosen],
        "logps/rejected": logps[rejected],
    }


def _mean(column: np.ndarray | None, rows: Sequence[int] | np.ndarray | slice = slice(None)) -> float | None:
    """Returns the mean of these rows, or None if there are none."""
    return None if column is None or not len(column[rows]) else float(np.mean(column[rows], dtype=np.float64))
