"""What a run minimises: losses of one view with their weights, applied to the logps of a microbatch or of a whole step.

This is the only place that knows how the quantities of a view are gathered from a batch; the step knows no view. In
shapes, A is microbatches, S responses, P pairs, G lists of K responses, and N the units of the view.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from care_jax import losses
from care_jax.config import Config
from care_jax.data.packing.batch import Batch
from care_jax.errors import UserError
from care_jax.losses.signature import Loss

Quantities = dict[str, Array]  # by the names that a loss's signature may have
# By metric: (weighted sum, sum of the weights). Added over microbatches, they give the exact means of the step.
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]

# The metric mean |logps - ref_logps| (of a pair, the larger): 0 up to rounding while the policy is its own reference.
LOG_RATIO = "log_ratio"


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of an objective. needs: its quantities, by name."""

    function: Loss
    weight: float
    needs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weighted losses of one view; hashable, so that a jitted function may close over it."""

    terms: tuple[Term, ...]
    view: str
    needs_ref: bool
    needs_kl: bool
    whole_step: bool


def make_objective(loss: Loss | Sequence[Loss | tuple[Loss, float]] | Objective) -> Objective:
    """Makes an objective of a loss function, or of a list of functions or (function, weight) pairs.

    Raises UserError if the losses have different views: they share one forward pass.
    """
    if isinstance(loss, Objective):
        return loss
    parts = [loss] if callable(loss) else list(loss)
    pairs = [part if isinstance(part, tuple) else (part, 1.0) for part in parts]
    specs = [losses.spec(function) for function, _ in pairs]
    views = {spec.view: spec.name for spec in specs}
    if len(views) != 1:
        shown = ", ".join(f"{name} ({view})" for view, name in views.items())
        raise UserError(f"loss: all losses of a list must have the same view; found {shown}")
    terms = tuple(Term(f, float(weight), tuple(spec.needs)) for (f, weight), spec in zip(pairs, specs))
    return Objective(
        terms,
        specs[0].view,
        needs_ref=any(spec.needs_ref for spec in specs),
        needs_kl=any(spec.needs_kl for spec in specs),
        whole_step=any(spec.whole_step for spec in specs),
    )


def objective_of(config: Config) -> Objective:
    """Returns the losses of a run's configuration."""
    return make_objective([(losses.bind(loss.name, **loss.hyperparameters), loss.weight) for loss in config.losses])


# ---- The batch as a view sees it

_PER_RESPONSE = ("lengths", "ratings", "ref_logps", "desirable", "response_weights")
_UNIT_ARRAYS = {  # by view: the arrays with one entry per unit
    "pairs": ("pairs", "pair_weights"),
    "unpaired": _PER_RESPONSE,
    "lists": ("groups", "group_mask", "group_weights"),
}


def merge_microbatches(batch: Batch) -> Batch:
    """Merges the microbatches of a step: arrays [A, N, ...] become [A * N, ...], slots index the merged responses."""
    slots = batch.lengths.shape[1]
    shift = jnp.arange(batch.lengths.shape[0], dtype=jnp.int32)[:, None, None] * slots

    def merge(x: Array) -> Array:
        return x.reshape((-1, *x.shape[2:]))

    names = (*_PER_RESPONSE, "pair_weights", "group_mask", "group_weights")
    merged: dict[str, Any] = {name: merge(getattr(batch, name)) for name in names}
    return dataclasses.replace(batch, pairs=merge(batch.pairs + shift), groups=merge(batch.groups + shift), **merged)


def select_units(view: str, batch: Batch, examples: int) -> tuple[Batch, Int[Array, " examples"]]:
    """Returns a merged batch without the padding of its units, and their indices in it. examples: units per step."""
    indices = jnp.nonzero(unit_weights(view, batch) > 0, size=examples, fill_value=0)[0]
    return dataclasses.replace(batch, **{name: getattr(batch, name)[indices] for name in _UNIT_ARRAYS[view]}), indices


def select_logps(view: str, logps: Float[Array, " S"], indices: Int[Array, " examples"]) -> Float[Array, " selected"]:
    """Returns the logps that belong to the units which `select_units` selected."""
    # Only in the unpaired view is a unit a response; pairs and lists point to theirs.
    return logps[indices] if view == "unpaired" else logps


def unit_weights(view: str, batch: Batch) -> Float[Array, " N"]:
    """Returns the weight of each unit in the step's mean; 0 for padding."""
    return {"pairs": batch.pair_weights, "unpaired": batch.response_weights, "lists": batch.group_weights}[view]


def gather_quantities(view: str, logps: Float[Array, " S"], batch: Batch, kl: Float[Array, ""] | None) -> Quantities:
    """Gathers every quantity that a loss of this view may name. batch: one microbatch, without its leading axis."""
    per_response = {"logps": logps, "ref_logps": batch.ref_logps, "lengths": batch.lengths, "ratings": batch.ratings}
    if view == "pairs":
        return {
            f"ref_{side}_logps" if name == "ref_logps" else f"{side}_{name}": values[batch.pairs[:, column]]
            for column, side in enumerate(("chosen", "rejected"))
            for name, values in per_response.items()
        }
    if view == "unpaired":
        return {**per_response, "desirable": batch.desirable, **({} if kl is None else {"kl": kl})}
    grouped = {f"group_{name}": values[batch.groups] for name, values in per_response.items()}
    return {**grouped, "group_mask": batch.group_mask}


# ---- Losses


def apply_losses(
    objective: Objective, quantities: Quantities
) -> tuple[list[Float[Array, " N"]], list[Array | float], dict[str, Array]]:
    """Calls each loss. Returns their values per unit; the weights per unit that they return, else 1.0; and all other
    arrays that they return, by name. If two losses return the same name, the array of the first is kept.
    """
    values, weights = [], []
    extras: dict[str, Array] = {}
    for term in objective.terms:
        value, named = term.function(**{name: quantities[name] for name in term.needs})
        named = dict(named)
        values.append(value)
        weights.append(named.pop("weights", 1.0))
        extras = {**named, **extras}
    return values, weights, extras


def sum_weights(objective: Objective, batch: Batch) -> list[Float[Array, ""]]:
    """Returns each loss's sum of weights over the batch of a whole step: the denominators of `compute_loss`.

    The weights that a loss returns must not depend on logps, so it is called with zeros as logps.
    """
    batch_weights = unit_weights(objective.view, batch)
    zeros = jnp.zeros(batch.lengths.shape, jnp.float32)
    _, loss_weights, _ = apply_losses(objective, gather_quantities(objective.view, zeros, batch, jnp.zeros(())))
    return [jnp.sum(batch_weights * weights) for weights in loss_weights]


def compute_loss(
    objective: Objective,
    logps: Float[Array, " S"],
    batch: Batch,
    kl: Float[Array, ""] | None,
    denominators: Sequence[Float[Array, ""]],
) -> tuple[Float[Array, ""], Sums]:
    """Returns a microbatch's share of the step's loss, and the sums from which the step's metrics are made.

    denominators: `sum_weights` of the whole step. Each microbatch divides by them, so that the loss of the step is the
    plain sum of the shares. Padding has weight 0 and finite values.
    """
    batch_weights = unit_weights(objective.view, batch)
    quantities = gather_quantities(objective.view, logps, batch, kl)
    values, loss_weights, extras = apply_losses(objective, quantities)
    share = jnp.zeros((), jnp.float32)
    for term, value, weights, denominator in zip(objective.terms, values, loss_weights, denominators):
        share = share + term.weight * jnp.sum(batch_weights * weights * value) / denominator
    return share, _sum_metrics(objective, quantities, extras, batch_weights)


def default_rewards(objective: Objective, logps: Array, ref_logps: Array, lengths: Array) -> Array:
    """Returns the rewards for a loss that returns none: logps - ref_logps, or without a reference logps / lengths."""
    return logps - ref_logps if objective.needs_ref else logps / lengths


def pair_rewards(
    objective: Objective, logps: Float[Array, " S"], batch: Batch, kl: Float[Array, ""] | None
) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """Returns the rewards of both sides of every pair, whatever the view: those of the losses, or `default_rewards`."""
    chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
    _, _, extras = apply_losses(objective, gather_quantities(objective.view, logps, batch, kl))
    if objective.view == "pairs" and "chosen_rewards" in extras:
        return extras["chosen_rewards"], extras["rejected_rewards"]
    rewards = default_rewards(objective, logps, batch.ref_logps, batch.lengths)
    if objective.view == "unpaired":
        rewards = extras.get("rewards", rewards)
    elif objective.view == "lists" and "rewards" in extras:
        mask = batch.group_mask
        rewards = jnp.zeros_like(logps).at[batch.groups[mask]].set(extras["rewards"][mask])
    return rewards[chosen], rewards[rejected]


# ---- Metrics


def _sum_metrics(objective: Objective, quantities: Quantities, extras: dict[str, Array], batch_weights: Array) -> Sums:
    """Sums the metrics of the view, and the other arrays that the losses return, under their own names."""
    by_view = {"pairs": _sum_pairs, "unpaired": _sum_responses, "lists": _sum_lists}
    extras = dict(extras)
    sums = by_view[objective.view](objective, quantities, extras, batch_weights)
    for name, values in extras.items():
        sums[name] = _weighted(values, batch_weights if values.shape == batch_weights.shape else jnp.ones_like(values))
    return sums


def _weighted(values: Array, weights: Array) -> tuple[Array, Array]:
    return jnp.sum(weights * values), jnp.sum(weights)


def _sum_pairs(objective: Objective, quantities: Quantities, extras: dict[str, Array], batch_weights: Array) -> Sums:
    """Sums rewards, accuracy and logps over pairs. Removes the rewards from `extras`."""
    sums: Sums = {}
    rewards, ratios = [], []
    for side in ("chosen", "rejected"):
        logps, ref_logps = quantities[f"{side}_logps"], quantities[f"ref_{side}_logps"]
        default = default_rewards(objective, logps, ref_logps, quantities[f"{side}_lengths"])
        rewards.append(extras.pop(f"{side}_rewards", default))
        ratios.append(jnp.abs(logps - ref_logps))
        sums[f"rewards/{side}"] = _weighted(rewards[-1], batch_weights)
        sums[f"logps/{side}"] = _weighted(logps, batch_weights)
    sums["rewards/accuracies"] = _weighted((rewards[0] > rewards[1]).astype(jnp.float32), batch_weights)
    if objective.needs_ref:
        sums[LOG_RATIO] = _weighted(jnp.maximum(*ratios), batch_weights)
    return sums


def _sum_responses(
    objective: Objective, quantities: Quantities, extras: dict[str, Array], batch_weights: Array
) -> Sums:
    """Sums rewards and logps over the desirable and the other responses. Removes the rewards from `extras`."""
    sums: Sums = {}
    logps, ref_logps, desirable = quantities["logps"], quantities["ref_logps"], quantities["desirable"]
    rewards = extras.pop("rewards", default_rewards(objective, logps, ref_logps, quantities["lengths"]))
    if objective.needs_ref:
        sums[LOG_RATIO] = _weighted(jnp.abs(logps - ref_logps), batch_weights)
    for side, mask in (("chosen", desirable), ("rejected", ~desirable)):
        weights = batch_weights * mask
        sums[f"rewards/{side}"], sums[f"logps/{side}"] = _weighted(rewards, weights), _weighted(logps, weights)
    return sums


def _sum_lists(objective: Objective, quantities: Quantities, extras: dict[str, Array], batch_weights: Array) -> Sums:
    """Sums over all pairs of a list whose first rating is higher. Removes the rewards from `extras`."""
    sums: Sums = {}
    logps, ref_logps = quantities["group_logps"], quantities["group_ref_logps"]
    mask, ratings = quantities["group_mask"], quantities["group_ratings"]
    rewards = extras.pop("rewards", default_rewards(objective, logps, ref_logps, quantities["group_lengths"]))
    if objective.needs_ref:
        sums[LOG_RATIO] = _weighted(jnp.abs(logps - ref_logps), mask * batch_weights[:, None])
    ordered = (ratings[:, :, None] > ratings[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    weights = ordered * batch_weights[:, None, None]
    weight_sum = jnp.sum(weights)
    for name, values in (("rewards", rewards), ("logps", logps)):
        sums[f"{name}/chosen"] = jnp.sum(weights * values[:, :, None]), weight_sum
        sums[f"{name}/rejected"] = jnp.sum(weights * values[:, None, :]), weight_sum
    correct = rewards[:, :, None] > rewards[:, None, :]
    sums["rewards/accuracies"] = jnp.sum(weights * correct), weight_sum
    for side in ("chosen", "rejected"):
        if f"{side}_rewards" in extras:
            sums[f"rewards/{side}"] = _weighted(extras.pop(f"{side}_rewards"), batch_weights)
    return sums


def take_means(sums: Sums) -> dict[str, Float[Array, ""]]:
    """Returns the means of `compute_loss`'s sums. A mean without weights is NaN, and logged as null."""
    means = {name: weighted_sum / weight_sum for name, (weighted_sum, weight_sum) in sums.items()}
    if "rewards/chosen" in means:
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return means
