"""DPO under divergences other than the reverse KL: each log-ratio h is replaced by a score before the margin.

Notation as in `pairwise`: hw, hl log-ratios of chosen and rejected; s the sigmoid; b = beta.
"""

import jax
import jax.numpy as jnp

from care_jax.losses.arithmetic import MAX_EXPONENT, Logps, Losses, Scalar, log_sigmoid, require
from care_jax.losses.pairwise import log_ratios, rewards

__all__ = ["dpo_alpha", "dpo_forward_kl", "dpo_js"]  # the losses of this module


def _loss(hw: jax.Array, hl: jax.Array, score_w: jax.Array, score_l: jax.Array, beta: Scalar) -> Losses:
    require(beta, "beta", 0.0, open_low=True)
    return -log_sigmoid(beta * (score_w - score_l)), rewards(hw, hl, beta)


def dpo_forward_kl(
    chosen_logps: Logps, rejected_logps: Logps, ref_chosen_logps: Logps, ref_rejected_logps: Logps, *, beta=0.1
) -> Losses:
    """DPO under the forward KL divergence.

    Formula: -log s(b (g(hw) - g(hl))), g(h) = 1 - exp(-h)
    Shapes: everything [P], float32. Rewards b hw, b hl (of the log-ratios, not of g). The exponent is at most 80:
        beyond that the true value leaves float32, and the loss is flat.
    Paper: Wang et al. 2023, arXiv 2309.16240, table 1.
    Peers: TRL `sigmoid` with f_divergence_type `forward_kl` the same, without the limit: from h = -88 on it
        is inf or NaN.
    """
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    score_w, score_l = (-jnp.expm1(jnp.minimum(-h, MAX_EXPONENT)) for h in (hw, hl))
    return _loss(hw, hl, score_w, score_l, beta)


def dpo_js(
    chosen_logps: Logps, rejected_logps: Logps, ref_chosen_logps: Logps, ref_rejected_logps: Logps, *, beta=0.1
) -> Losses:
    """DPO under the Jensen-Shannon divergence.

    Formula: -log s(b (g(hw) - g(hl))), g(h) = log 2 + log s(h)
    Shapes: everything [P], float32. Rewards b hw, b hl (of the log-ratios, not of g).
    Paper: Wang et al. 2023, arXiv 2309.16240, table 1.
    Peers: TRL `sigmoid` with f_divergence_type `js_divergence` the same (log 2 drops out of the margin).
    """
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return _loss(hw, hl, log_sigmoid(hw), log_sigmoid(hl), beta)


def dpo_alpha(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    *,
    beta=0.1,
    alpha=0.5,
) -> Losses:
    """DPO under an alpha divergence: alpha 1 is the reverse KL (DPO itself), alpha 0 the forward KL.

    Formula: -log s(b (g(hw) - g(hl))), g(h) = (exp((alpha-1) h) - 1) / (alpha - 1), and h itself at alpha = 1
    Shapes: everything [P], float32. Rewards b hw, b hl (of the log-ratios, not of g). The exponent is at most 80;
        beyond that the loss is flat.
    Paper: Wang et al. 2023, arXiv 2309.16240, table 1, whose alpha is 1 - alpha here.
    Peers: TRL `sigmoid` with f_divergence_type `alpha_divergence` the same, with f_alpha_divergence_coef for alpha; its
        exp(x) - 1 loses digits at small h, expm1 here does not.
    """
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    power = alpha - 1.0
    reverse = jnp.abs(power) < 1e-6
    power = jnp.where(reverse, 1.0, power)
    score_w, score_l = (
        jnp.where(reverse, h, jnp.expm1(jnp.minimum(power * h, MAX_EXPONENT)) / power) for h in (hw, hl)
    )
    return _loss(hw, hl, score_w, score_l, beta)
