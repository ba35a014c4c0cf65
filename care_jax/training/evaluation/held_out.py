"""Preference accuracy on held-out questions: the run's own loss, and pairs that compare across losses."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from care_jax.data.corpus import Corpus
from care_jax.data.packing.batch import Batch
from care_jax.data.preferences import Unit
from care_jax.training import objective as objectives
from care_jax.training.objective import Objective

# A prompt of the corpus with a response of the corpus, not always its own (KTO's mismatched completions).
SequenceId = tuple[int, int]


# What is measured over all held-out pairs, and by culture and category.
GROUPED = ("rewards/accuracies", "rewards/margins", "logps/accuracies")
MEASURED = (*GROUPED, "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What evaluation needs, laid out once: sequences to run, and numpy tables that turn their logps into metrics.

    sequences: (question, response) of the corpus; own, everything, lists: flat one-microbatch tables over positions in
    `sequences`; labels: names of the groups that each pair of `everything` is reported by; owners: the question (its
    key, culture, category) of each pair of `everything`.
    """

    sequences: tuple[SequenceId, ...]
    own: Batch
    everything: Batch
    mismatched: np.ndarray  # positions in `sequences`
    labels: dict[str, np.ndarray]  # group name -> bool [pairs]
    owners: tuple[tuple[str, str | None, str | None], ...] = ()


def hold_out(
    corpus: Corpus,
    own: Sequence[Unit],
    everything: Sequence[Unit],
    mismatched: Sequence[SequenceId],
) -> HeldOut:
    """own: units of the run's view and policy; everything: units with all pairs at min_gap 1, whatever the loss."""
    places: dict[SequenceId, int] = {}

    def place(question: int, response: int) -> int:
        return places.setdefault((question, response), len(places))

    for unit in (*everything, *own):
        for response in unit.responses:
            place(unit.question, corpus.response_id(unit.question, response))
    other = np.asarray([place(*sequence) for sequence in mismatched], np.int32)
    sequences = tuple(places)
    responses = np.asarray([response for _, response in sequences], np.int64)

    def table(units: Sequence[Unit]) -> Batch:
        return _table(corpus, units, places, responses)

    labels: dict[str, list[bool]] = {}
    questions = [unit.question for unit in everything for _ in unit.pairs]
    for question in sorted(set(questions)):
        for name in (corpus.culture(question), corpus.category(question)):
            if name:
                labels.setdefault(name, [])
    found = {
        name: np.asarray([name in (corpus.culture(q), corpus.category(q)) for q in questions], bool) for name in labels
    }
    owners = tuple((corpus.key(q), corpus.culture(q), corpus.category(q)) for q in questions)
    return HeldOut(sequences, table(own), table(everything), other, found, owners)


def _table(corpus: Corpus, units: Sequence[Unit], places: dict[SequenceId, int], responses: np.ndarray) -> Batch:
    """The numbers of a Batch, one microbatch without its leading axis, slots being positions in the sequences."""
    slots = [[places[unit.question, corpus.response_id(unit.question, r)] for r in unit.responses] for unit in units]
    pairs = [(own[c], own[r]) for unit, own in zip(units, slots) for c, r in unit.pairs]
    pair_weights = [weight for unit in units for weight in unit.weights]
    width = max((len(own) for own in slots), default=0)
    groups = np.zeros((len(units), width), np.int32)
    mask = np.zeros((len(units), width), bool)
    desirable = np.zeros(len(responses), bool)
    weights = np.zeros(len(responses), np.float32)
    for row, (unit, own) in enumerate(zip(units, slots)):
        groups[row, : len(own)], mask[row, : len(own)] = own, True
        if unit.desirable is not None:
            desirable[own], weights[own] = unit.desirable, unit.weight
    count = len(responses)
    return Batch(
        lengths=corpus.completion_lengths[responses].astype(np.int32),
        ratings=corpus.ratings[responses].astype(np.float32),
        ref_logps=np.zeros(count, np.float32),
        desirable=desirable,
        segment_weights=weights,
        pairs=np.asarray(pairs, np.int32).reshape(-1, 2),
        pair_weights=np.asarray(pair_weights, np.float32),
        groups=groups,
        group_mask=mask,
        group_weights=np.asarray([unit.weight for unit in units], np.float32),
    )


def measure(objective: Objective, held_out: HeldOut, logps: np.ndarray, ref_logps: np.ndarray | None) -> dict[str, Any]:
    """Metrics `eval/...` from logps (and reference logps) [len(sequences)] float32.

    Where every margin is 0, the policy being its own reference, accuracies of rewards mean nothing and are null.
    """
    own, everything, values, kl = _placed(objective, held_out, logps, ref_logps)
    found: dict[str, Any] = {} if kl is None else {"eval/kl": kl}
    totals = objectives.denominators(objective, own)
    share, _ = objectives.evaluate(objective, values, own, kl, totals)
    found["eval/loss"] = share

    chosen, rejected = held_out.everything.pairs[:, 0], held_out.everything.pairs[:, 1]
    pair_rewards = _pair_rewards(objective, values, everything, own, kl)
    by_pair = _by_pair(held_out, logps, pair_rewards)
    whole = {
        **by_pair,
        "rewards/chosen": pair_rewards[0],
        "rewards/rejected": pair_rewards[1],
        "logps/chosen": logps[chosen],
        "logps/rejected": logps[rejected],
    }
    for name, column in whole.items():
        found[f"eval/{name}"] = _mean(column)
    for group, members in held_out.labels.items():
        for name, column in by_pair.items():
            found[f"eval/{group}/{name}"] = None if column is None else _mean(column[members])
    return {name: float(value) if value is not None else None for name, value in found.items()}


def by_question(
    objective: Objective, held_out: HeldOut, logps: np.ndarray, ref_logps: np.ndarray | None
) -> list[dict[str, Any]]:
    """Accuracies of each held-out question: `question culture category pairs rewards/accuracies logps/accuracies`."""
    own, everything, values, kl = _placed(objective, held_out, logps, ref_logps)
    columns = _by_pair(held_out, logps, _pair_rewards(objective, values, everything, own, kl))
    pairs: dict[tuple[str, str | None, str | None], list[int]] = {}
    for number, owner in enumerate(held_out.owners):
        pairs.setdefault(owner, []).append(number)
    lines = []
    for (key, culture, category), numbers in pairs.items():
        own_means = {
            name: None if (column := columns[name]) is None else _mean(column[numbers])
            for name in ("rewards/accuracies", "logps/accuracies")
        }
        about = {"question": key, "culture": culture, "category": category, "pairs": len(numbers)}
        lines.append({**about, **own_means})
    return lines


def _placed(
    objective: Objective, held_out: HeldOut, logps: np.ndarray, ref_logps: np.ndarray | None
) -> tuple[Batch, Batch, Any, Any]:
    """(own, everything, logps, kl) as arrays; kl is None where the loss does not ask for it."""
    reference = np.zeros_like(logps) if ref_logps is None else ref_logps

    def array(table: Batch) -> Batch:
        placed: dict[str, Any] = {
            name: jnp.asarray(getattr(table, name))
            for name in (
                *("lengths", "ratings", "desirable", "segment_weights", "pairs", "pair_weights"),
                *("groups", "group_mask", "group_weights"),
            )
        }
        return dataclasses.replace(table, ref_logps=jnp.asarray(reference), **placed)

    own, everything = array(held_out.own), array(held_out.everything)
    values, kl = jnp.asarray(logps), None
    if objective.needs_kl:
        ratios = values[held_out.mismatched] - own.ref_logps[held_out.mismatched]
        kl = jnp.maximum(jnp.mean(ratios), 0)
    return own, everything, values, kl


def _by_pair(
    held_out: HeldOut, logps: np.ndarray, rewards: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray | None]:
    """The columns of GROUPED, [pairs] each; no accuracy of rewards where every pair is a tie."""
    chosen, rejected = held_out.everything.pairs[:, 0], held_out.everything.pairs[:, 1]
    per_token = logps / held_out.everything.lengths
    right = (rewards[0] > rewards[1]).astype(np.float64)
    return {
        "rewards/accuracies": right if np.any(rewards[0] != rewards[1]) else None,
        "rewards/margins": rewards[0] - rewards[1],
        "logps/accuracies": (per_token[chosen] > per_token[rejected]).astype(np.float64),
    }


def _mean(column: np.ndarray | None) -> float | None:
    return None if column is None or not len(column) else float(np.mean(column, dtype=np.float64))


def _pair_rewards(objective: Objective, values, everything: Batch, own: Batch, kl) -> tuple[np.ndarray, np.ndarray]:
    """The reward of both sides of every held-out pair: what the loss returns for it, else the default of DESIGN."""
    pairs = everything.pairs
    if objective.view == "pairs":
        found = objectives.quantities("pairs", values, everything, None)
        _, _, extras = objectives.call(objective, found)
        if "chosen_rewards" in extras:
            return np.asarray(extras["chosen_rewards"]), np.asarray(extras["rejected_rewards"])
    elif objective.view == "unpaired":
        # Every held-out response, those between the labels too: a reward depends on no label.
        found = objectives.quantities("unpaired", values, everything, kl)
        _, _, extras = objectives.call(objective, found)
        if "rewards" in extras:
            rewards = np.asarray(extras["rewards"])
            return rewards[pairs[:, 0]], rewards[pairs[:, 1]]
    else:
        _, _, extras = objectives.call(objective, objectives.quantities("lists", values, everything, None))
        if "rewards" in extras:
            rewards = np.zeros(len(everything.lengths), np.float32)
            mask = np.asarray(everything.group_mask)
            rewards[np.asarray(everything.groups)[mask]] = np.asarray(extras["rewards"])[mask]
            return rewards[pairs[:, 0]], rewards[pairs[:, 1]]
    rewards = np.asarray(objectives.default_rewards(objective, values, everything.ref_logps, everything.lengths))
    return rewards[pairs[:, 0]], rewards[pairs[:, 1]]
