"""Losses of rated groups [G, K]: ratings decide the order, and equal ratings are never compared.

In the formulas: i, j run over the responses of one list; h_i = logp_i - reference logp_i; r_i its rating; s the
sigmoid; b = beta.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from care_jax.losses.arithmetic import Scalar, log_sigmoid, require, wide

__all__ = ["gap_dpo", "plackett_luce"]  # the losses of this module

ListLogps = Float[Array | np.ndarray, "*G K"]
ListRatings = Num[Array | np.ndarray, "*G K"]
ListMask = Bool[Array | np.ndarray, "*G K"]
ListLosses = tuple[Float[Array, "*G"], dict[str, Array]]


def _scores(
    logps: ListLogps, ref_logps: ListLogps, ratings: ListRatings, mask: ListMask, beta: Scalar
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (b h [G, K] with 0 in padding; ratings [G, K]; better [G, K, K]: i present, j present, r_i > r_j)."""
    mask = jnp.asarray(mask).astype(bool)
    scores = beta * jnp.where(mask, wide(logps) - wide(ref_logps), 0.0)
    ratings = jnp.where(mask, wide(ratings), 0.0)
    present = mask[..., :, None] & mask[..., None, :]
    return scores, ratings, present & (ratings[..., :, None] > ratings[..., None, :])


def _ends(scores: jax.Array, ratings: jax.Array, mask: ListMask) -> dict[str, jax.Array]:
    """Returns the mean rewards [G] of the best rated and of the worst rated responses of each list."""
    mask = jnp.asarray(mask).astype(bool)
    rewards = {}
    for name, pick, sign in (("chosen_rewards", jnp.max, -jnp.inf), ("rejected_rewards", jnp.min, jnp.inf)):
        end = pick(jnp.where(mask, ratings, sign), axis=-1, keepdims=True)
        at_end = mask & (ratings == end)
        rewards[name] = jnp.sum(jnp.where(at_end, scores, 0.0), axis=-1) / jnp.maximum(jnp.sum(at_end, axis=-1), 1)
    return rewards


def plackett_luce(
    group_logps: ListLogps, group_ref_logps: ListLogps, group_ratings: ListRatings, group_mask: ListMask, *, beta=0.1
) -> ListLosses:
    """DPO of a ranking: each response is chosen over all that are rated below it.

    Formula: sum_i [log(exp(b h_i) + sum_{j: r_j < r_i} exp(b h_j)) - b h_i]
    Shapes: inputs [G, K], `group_mask` bool, False in padding; losses [G], float32. Rewards [G]: mean b h of the best
        rated and of the worst rated. Two responses give DPO; responses with equal ratings do not compete with each
        other; a list without two different ratings gives 0.
    Paper: Rafailov et al. 2023, arXiv 2305.18290, appendix A.3; Plackett 1975, Luce 1959.
    Peers: none of TRL, HALOs or SimPO has it.
    """
    require(beta, "beta", 0.0, open_low=True)
    scores, ratings, better = _scores(group_logps, group_ref_logps, group_ratings, group_mask, beta)
    # -log of i's share among itself and all below it is the softplus of the log-sum-exp of their leads over i. For a
    # response with none below, the sum is over itself, so that it is not empty, and its loss counts 0.
    competes = jnp.any(better, axis=-1)
    itself = jnp.broadcast_to(jnp.eye(scores.shape[-1], dtype=bool), better.shape) & ~competes[..., None]
    leads = scores[..., None, :] - scores[..., :, None]
    lead = jax.nn.logsumexp(leads, axis=-1, where=better | itself)
    losses = jnp.where(competes, -log_sigmoid(-lead), 0.0)
    return jnp.sum(losses, axis=-1), _ends(scores, ratings, group_mask)


def gap_dpo(
    group_logps: ListLogps, group_ref_logps: ListLogps, group_ratings: ListRatings, group_mask: ListMask, *, beta=0.1
) -> ListLosses:
    """DPO over all pairs of a list, weighted by how far apart their ratings are.

    Formula: sum_{r_i > r_j} (r_i - r_j) (-log s(b(h_i - h_j))) / sum_{r_i > r_j} (r_i - r_j)
    Shapes: inputs [G, K], `group_mask` bool, False in padding; losses [G], float32. Rewards [G]: mean b h of the best
        rated and of the worst rated. A list without two different ratings gives 0.
    Paper: Rafailov et al. 2023, arXiv 2305.18290 for a pair; the weighting by gap is this library's.
    Peers: none of TRL, HALOs or SimPO has it.
    """
    require(beta, "beta", 0.0, open_low=True)
    scores, ratings, better = _scores(group_logps, group_ref_logps, group_ratings, group_mask, beta)
    gaps = jnp.where(better, ratings[..., :, None] - ratings[..., None, :], 0.0)
    losses = -log_sigmoid(scores[..., :, None] - scores[..., None, :])
    total = jnp.sum(gaps, axis=(-2, -1))
    # Without a gap the numerator is 0 as well.
    return jnp.sum(gaps * losses, axis=(-2, -1)) / jnp.where(total > 0, total, 1.0), _ends(scores, ratings, group_mask)
