"""What a run minimises: losses of one view with their weights, applied to the logps of a microbatch or of a whole step.

This is the only place that knows how a view's quantities are gathered from a batch; the step above it knows no view.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from care_jax import losses
from care_jax.config import Config
from care_jax.data.packing.batch import Batch
from care_jax.errors import UserError

# A weighted sum and the sum of its weights: means over any number of microbatches are exact.
Sums = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Term:
    function: Callable[..., Any]
    weight: float
    needs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weighted losses over one view; hashable, so that it may be closed over by a jitted function."""

    terms: tuple[Term, ...]
    view: str
    needs_ref: bool
    needs_kl: bool
    whole_step: bool


def make_objective(loss: Callable[..., Any] | Sequence[Any] | Objective) -> Objective:
    """An objective from a loss function, or from a list of functions or (function, weight) pairs.

    Raises UserError where the losses see preferences by different views: they share one forward pass.
    """
    if isinstance(loss, Objective):
        return loss
    parts = [loss] if callable(loss) else list(loss)
    pairs = [part if isinstance(part, tuple) else (part, 1.0) for part in parts]
    specs = [losses.spec(function) for function, _ in pairs]
    views = {spec.view: spec.name for spec in specs}
    if len(views) != 1:
        shown = ", ".join(f"{name} ({view})" for view, name in views.items())
        raise UserError(f"loss: the losses of one list share one view, found {shown}")
    terms = tuple(Term(f, float(weight), tuple(spec.needs)) for (f, weight), spec in zip(pairs, specs))
    return Objective(
        terms,
        specs[0].view,
        needs_ref=any(spec.needs_ref for spec in specs),
        needs_kl=any(spec.needs_kl for spec in specs),
        whole_step=any(spec.whole_step for spec in specs),
    )


def objective_of(config: Config) -> Objective:
    """The losses of a run's configuration."""
    return make_objective([(losses.bind(one.name, **one.hyperparameters), one.weight) for one in config.losses])


def flatten(batch: Batch) -> Batch:
    """All microbatches of a step as one: the numbers [A, ...] become [A * ...], slots shifted accordingly."""
    slots = batch.lengths.shape[1]
    shift = jnp.arange(batch.lengths.shape[0], dtype=jnp.int32)[:, None, None] * slots

    def merge(x):
        return x.reshape((-1, *x.shape[2:]))

    merged = {
        name: merge(getattr(batch, name))
        for name in (
            *("lengths", "ratings", "ref_logps", "desirable", "segment_weights"),
            *("pair_weights", "group_mask", "group_weights"),
        )
    }
    return dataclasses.replace(batch, pairs=merge(batch.pairs + shift), groups=merge(batch.groups + shift), **merged)


def unit_weights(view: str, batch: Batch) -> jax.Array:
    return {"pairs": batch.pair_weights, "unpaired": batch.segment_weights, "lists": batch.group_weights}[view]


def quantities(view: str, logps: jax.Array, batch: Batch, kl: jax.Array | None) -> dict[str, Any]:
    """Every quantity that a loss of this view may name. logps [S]; batch: one microbatch, without its leading axis."""
    if view == "pairs":
        per_response = {
            "logps": logps,
            "ref_logps": batch.ref_logps,
            "lengths": batch.lengths,
            "ratings": batch.ratings,
        }
        found = {}
        for side, column in (("chosen", 0), ("rejected", 1)):
            slots = batch.pairs[:, column]
            for name, values in per_response.items():
                label = f"ref_{side}_logps" if name == "ref_logps" else f"{side}_{name}"
                found[label] = values[slots]
        return found
    if view == "unpaired":
        return {
            "logps": logps,
            "ref_logps": batch.ref_logps,
            "lengths": batch.lengths,
            "ratings": batch.ratings,
            "desirable": batch.desirable,
            "kl": kl,
        }
    return {
        "group_logps": logps[batch.groups],
        "group_ref_logps": batch.ref_logps[batch.groups],
        "group_lengths": batch.lengths[batch.groups],
        "group_ratings": batch.ratings[batch.groups],
        "group_mask": batch.group_mask,
    }


def call(objective: Objective, found: dict[str, Any]) -> tuple[list[jax.Array], list[Any], dict[str, jax.Array]]:
    """Each term's losses [N], its own weights [N] (or 1.0), and what else they return (the first loss's name wins)."""
    values, weights = [], []
    extras: dict[str, jax.Array] = {}
    for term in objective.terms:
        value, aux = term.function(**{name: found[name] for name in term.needs})
        aux = dict(aux)
        values.append(value)
        weights.append(aux.pop("weights", 1.0))
        extras = {**aux, **extras}
    return values, weights, extras


def denominators(objective: Objective, batch: Batch) -> list[jax.Array]:
    """sum(w) of each term over everything in `batch`; a loss's own weights depend on no logp, so zeros will do."""
    units = unit_weights(objective.view, batch)
    found = quantities(objective.view, jnp.zeros(batch.lengths.shape, jnp.float32), batch, jnp.zeros(()))
    _, weights, _ = call(objective, found)
    return [jnp.sum(units * weight) for weight in weights]


def evaluate(
    objective: Objective, logps: jax.Array, batch: Batch, kl: jax.Array | None, totals: Sequence[jax.Array]
) -> tuple[jax.Array, Sums]:
    """This microbatch's share of the step's loss, and the sums from which its metrics are means.

    logps: [S] float32. totals: `denominators` of the whole step. Padding carries weight 0 and finite values.
    """
    units = unit_weights(objective.view, batch)
    found = quantities(objective.view, logps, batch, kl)
    values, weights, extras = call(objective, found)
    share = jnp.zeros((), jnp.float32)
    for term, value, weight, total in zip(objective.terms, values, weights, totals):
        share = share + term.weight * jnp.sum(units * weight * value) / total
    return share, _sums(objective, found, extras, units)


# Mean |logps - ref_logps| over what a step sees: 0 but for rounding while the policy is its own reference.
LOG_RATIO = "log_ratio"


def _sums(objective: Objective, found: dict[str, Any], extras: dict[str, jax.Array], units: jax.Array) -> Sums:
    def mean_of(values, weights):
        return jnp.sum(weights * values), jnp.sum(weights)

    extras = dict(extras)
    sums: Sums = {}
    if objective.view == "pairs":
        for side in ("chosen", "rejected"):
            if f"{side}_rewards" not in extras:
                extras[f"{side}_rewards"] = default_rewards(
                    objective, found[f"{side}_logps"], found[f"ref_{side}_logps"], found[f"{side}_lengths"]
                )
        chosen, rejected = extras.pop("chosen_rewards"), extras.pop("rejected_rewards")
        sums["rewards/chosen"], sums["rewards/rejected"] = mean_of(chosen, units), mean_of(rejected, units)
        sums["rewards/accuracies"] = mean_of((chosen > rejected).astype(jnp.float32), units)
        sums["logps/chosen"] = mean_of(found["chosen_logps"], units)
        sums["logps/rejected"] = mean_of(found["rejected_logps"], units)
        if objective.needs_ref:
            ratios = [jnp.abs(found[f"{side}_logps"] - found[f"ref_{side}_logps"]) for side in ("chosen", "rejected")]
            sums[LOG_RATIO] = mean_of(jnp.maximum(*ratios), units)
    elif objective.view == "unpaired":
        rewards = extras.pop("rewards", None)
        if rewards is None:
            rewards = default_rewards(objective, found["logps"], found["ref_logps"], found["lengths"])
        if objective.needs_ref:
            sums[LOG_RATIO] = mean_of(jnp.abs(found["logps"] - found["ref_logps"]), units)
        for side, members in (("chosen", found["desirable"]), ("rejected", ~found["desirable"])):
            weights = units * members
            sums[f"rewards/{side}"], sums[f"logps/{side}"] = mean_of(rewards, weights), mean_of(found["logps"], weights)
    else:
        _list_sums(objective, found, extras, units, sums)
    for name, values in extras.items():
        sums[name] = mean_of(values, units if values.shape == units.shape else jnp.ones_like(values))
    return sums


def _list_sums(objective: Objective, found: dict[str, Any], extras: dict[str, jax.Array], units: jax.Array, sums: Sums):
    """Means over the rating-ordered pairs of the lists; rewards as the loss names them, or the default."""
    rewards = extras.pop("rewards", None)
    if rewards is None:
        rewards = default_rewards(objective, found["group_logps"], found["group_ref_logps"], found["group_lengths"])
    mask, ratings = found["group_mask"], found["group_ratings"]
    if objective.needs_ref:
        members = mask * units[:, None]
        sums[LOG_RATIO] = jnp.sum(members * jnp.abs(found["group_logps"] - found["group_ref_logps"])), jnp.sum(members)
    ordered = (ratings[:, :, None] > ratings[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    weights = ordered * units[:, None, None]
    count = jnp.sum(weights)
    for name, values in (("rewards", rewards), ("logps", found["group_logps"])):
        sums[f"{name}/chosen"] = jnp.sum(weights * values[:, :, None]), count
        sums[f"{name}/rejected"] = jnp.sum(weights * values[:, None, :]), count
    right = rewards[:, :, None] > rewards[:, None, :]
    sums["rewards/accuracies"] = jnp.sum(weights * right), count
    for side in ("chosen", "rejected"):
        if f"{side}_rewards" in extras:
            named = extras.pop(f"{side}_rewards")
            sums[f"rewards/{side}"] = jnp.sum(units * named), jnp.sum(units)


def default_rewards(objective: Objective, logps: jax.Array, ref_logps: jax.Array, lengths: jax.Array) -> jax.Array:
    """The reward of a response where the loss names none: against the reference, or a token without one."""
    return logps - ref_logps if objective.needs_ref else logps / lengths


def means(sums: Sums) -> dict[str, jax.Array]:
    """Means of `evaluate`'s sums; NaN where a step holds none of a kind (logged as null)."""
    found = {name: total / count for name, (total, count) in sums.items()}
    if "rewards/chosen" in found:
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found
