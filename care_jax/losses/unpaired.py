"""Losses of single labelled responses.

In the formulas: h = logp - reference logp, s the sigmoid, b = beta, z0 = `kl`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from care_jax.losses.arithmetic import Flags, Lengths, Logps, Losses, per_token, require, wide

__all__ = ["kto", "nll"]  # the losses of this module


def kto(
    logps: Logps,
    ref_logps: Logps,
    desirable: Flags,
    kl: Float[Array | np.ndarray, ""] | float,
    *,
    beta=0.1,
    desirable_weight=1.0,
    undesirable_weight=1.0,
) -> Losses:
    """Kahneman-Tversky optimisation: gains and losses relative to z0, an estimate of the KL from the reference.

    Formula: desirable: desirable_weight (1 - s(b(h - z0))); else: undesirable_weight (1 - s(b(z0 - h)))
    Shapes: [N], `desirable` bool; `kl` is z0, a scalar in nats. float32. Rewards b h. z0 is the mean of h over the
        whole step's mismatched completions (each prompt with the completion of the nearest earlier example of another
        question), clamped at 0 after that mean; no gradient goes through it.
    Paper: Ethayarajh et al. 2024, arXiv 2402.01306, equation 7; weights so that desirable_weight n_desirable /
        (undesirable_weight n_undesirable) lies in [1, 4/3] (equation 8): `kto_weight_ratio`.
    Peers: the formula is TRL's and HALOs'. TRL takes z0 from the previous row of a microbatch, fixed at tokenisation
        (so its order can never be shuffled), as a mean of device means; HALOs from the next row of a microbatch. Both
        have one z0 per microbatch; here it is one per step, whatever the microbatch and the mesh.
    """
    require(beta, "beta", 0.0, open_low=True)
    require(desirable_weight, "desirable_weight", 0.0)
    require(undesirable_weight, "undesirable_weight", 0.0)
    h = wide(logps) - wide(ref_logps)
    z0 = jax.lax.stop_gradient(jnp.maximum(wide(kl), 0.0))
    # 1 - s(x) = s(-x), which keeps its digits if s(x) is near 1.
    gain = desirable_weight * jax.nn.sigmoid(-beta * (h - z0))
    loss = undesirable_weight * jax.nn.sigmoid(-beta * (z0 - h))
    return jnp.where(jnp.asarray(desirable).astype(bool), gain, loss), {"rewards": beta * h}


def kto_weight_ratio(
    desirable: int, undesirable: int, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> tuple[float, str]:
    """Checks KTO's weights against the published rule, for counts of labelled responses.

    Returns (ratio, advice). ratio = desirable_weight desirable / (undesirable_weight undesirable) should be in
    [1, 4/3] (Ethayarajh et al. 2024, equation 8); if so, advice is '', else one line with the ratio and weights that
    satisfy the rule (one of the two is changed, as the authors advise).
    """
    gains, losses = desirable_weight * desirable, undesirable_weight * undesirable
    if gains <= 0 or losses <= 0:
        weightless = "desirable" if gains <= 0 else "undesirable"
        ratio = float("inf") if gains > 0 else 0.0
        return ratio, f"KTO: the {weightless} responses weigh nothing ({desirable} and {undesirable} of them)"
    ratio = gains / losses
    if 1.0 <= ratio <= 4.0 / 3.0:
        return ratio, ""
    return ratio, (
        f"KTO: desirable_weight x desirable / (undesirable_weight x undesirable) = {ratio:.3g} is outside [1, 1.33] "
        f"({desirable} desirable, {undesirable} undesirable): set desirable_weight in {_inside(losses / desirable)} "
        f"or undesirable_weight in {_inside(0.75 * gains / undesirable)}"
    )


def _inside(low: float) -> str:
    """Returns "[low, 4/3 low]" in three digits, rounded inwards so that both ends are in the interval."""
    digit = 10.0 ** (math.floor(math.log10(low)) - 2)
    ends = math.ceil(low / digit) * digit, math.floor(4.0 / 3.0 * low / digit) * digit
    return f"[{ends[0]:.4g}, {ends[1]:.4g}]"


def nll(logps: Logps, lengths: Lengths) -> Losses:
    """Negative log-likelihood per token: plain supervised fine-tuning on prompts and completions.

    Formula: -logp/|y|, weighted by |y|: the mean over the step is one over tokens
    Shapes: everything [N]; lengths are completion tokens; float32. Rewards logp/|y|; `weights` holds the lengths. Every
        response counts, whatever its label; data.labels chooses the responses (best: each question's best).
    Paper: Ouyang et al. 2022, arXiv 2203.02155, its first step.
    Peers: TRL's SFTTrainer with completion_only_loss the same (a token mean over the step).
    """
    mean = per_token(logps, lengths)
    return -mean, {"rewards": mean, "weights": wide(lengths)}
