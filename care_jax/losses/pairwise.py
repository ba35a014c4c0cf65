"""Losses of pairs with a reference: each takes logps of the chosen and the rejected under policy and reference.

In the formulas: lw, ll are logps of chosen and rejected under the policy, rw, rl under the reference;
hw = lw - rw, hl = ll - rl, D = hw - hl; |y| completion tokens; s the sigmoid; b = beta; e = label_smoothing.
"""

import jax
import jax.numpy as jnp

from care_jax.losses.arithmetic import Lengths, Logps, Losses, Scalar, log_sigmoid, per_token, require, smoothed, wide
from care_jax.losses.signature import whole_step

__all__ = [  # the losses of this module
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "discopop",
    "dpo",
    "exo_pair",
    "hinge",
    "ipo",
    "nca_pair",
    "robust_dpo",
    "sigmoid_norm",
    "sppo_hard",
]


def log_ratios(chosen: Logps, rejected: Logps, ref_chosen: Logps, ref_rejected: Logps) -> tuple[jax.Array, jax.Array]:
    """Returns (hw, hl), at least float32."""
    return wide(chosen) - wide(ref_chosen), wide(rejected) - wide(ref_rejected)


def rewards(hw: jax.Array, hl: jax.Array, beta: Scalar) -> dict[str, jax.Array]:
    """Returns the logged rewards b hw and b hl."""
    return {"chosen_rewards": beta * hw, "rejected_rewards": beta * hl}


def dpo(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    *,
    beta=0.1,
    label_smoothing=0.0,
) -> Losses:
    """Direct preference optimisation; with label smoothing it is conservative DPO (cDPO).

    Formula: -(1-e) log s(bD) - e log s(-bD)
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: Rafailov et al. 2023, arXiv 2305.18290, equation 7; smoothing: Mitchell 2023, ericmitchell.ai/cdpo.pdf.
    Peers: TRL calls it `sigmoid` and since its refactor (1.16) ignores label_smoothing there without a warning: it
        then trains plain DPO. HALOs' CDPOTrainer computes the formula above.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(beta * (hw - hl), label_smoothing), rewards(hw, hl, beta)


def robust_dpo(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    *,
    beta=0.1,
    label_smoothing=0.1,
) -> Losses:
    """DPO that is unbiased when labels are flipped with probability e; it can be negative.

    Formula: (-(1-e) log s(bD) + e log s(-bD)) / (1-2e)
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: Chowdhury et al. 2024, arXiv 2403.00409.
    Peers: TRL `robust` the same; its default e of 0 makes it plain DPO.
    """
    require(beta, "beta", 0.0, open_low=True)
    require(label_smoothing, "label_smoothing", 0.0, 0.5)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    margin = beta * (hw - hl)
    clean, flipped = -log_sigmoid(margin), -log_sigmoid(-margin)
    losses = ((1.0 - label_smoothing) * clean - label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)
    return losses, rewards(hw, hl, beta)


def ipo(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    beta=0.1,
) -> Losses:
    """Identity preference optimisation: the margin per token is drawn to 1/(2 beta), not to infinity.

    Formula: (hw/|yw| - hl/|yl| - 1/(2b))^2, b is the paper's tau
    Shapes: everything [P]; lengths are completion tokens; float32. Rewards b hw, b hl.
    Paper: Azar et al. 2023, arXiv 2310.12036, equation 17, which sums over tokens.
    Peers: TRL and HALOs average over tokens too; the authors told TRL that they did so for their results. HALOs counts
        only tokens whose log-ratio is not 0: policy equal to reference gives 0/0 there, 1/(2b)^2 here.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    margin = per_token(hw, chosen_lengths) - per_token(hl, rejected_lengths)
    return (margin - 0.5 / beta) ** 2, rewards(hw, hl, beta)


def hinge(
    chosen_logps: Logps, rejected_logps: Logps, ref_chosen_logps: Logps, ref_rejected_logps: Logps, *, beta=0.1
) -> Losses:
    """The hinge on DPO's margin: a pair with hw - hl of 1/beta or more has no gradient.

    Formula: max(0, 1 - bD)
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: Zhao et al. 2023 (SLiC-HF), arXiv 2305.10425; as in RSO, Liu et al. 2023, arXiv 2309.06657.
    Peers: TRL `hinge` the same. HALOs' SLiC has no reference and adds the NLL of the chosen.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return jax.nn.relu(1.0 - beta * (hw - hl)), rewards(hw, hl, beta)


def exo_pair(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    *,
    beta=0.1,
    label_smoothing=1e-3,
) -> Losses:
    """Efficient exact optimisation: reverse KL from the policy's preference to the smoothed label.

    Formula: q (log q - log(1-e)) + (1-q) (log(1-q) - log e), q = s(bD)
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: Ji et al. 2024, arXiv 2402.00856, equation 16. e must be above 0: the label's entropy is finite only then.
    Peers: TRL `exo_pair` the same.
    """
    require(beta, "beta", 0.0, open_low=True)
    require(label_smoothing, "label_smoothing", 0.0, 0.5, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    margin = beta * (hw - hl)
    won = jax.nn.sigmoid(margin) * (log_sigmoid(margin) - jnp.log1p(-label_smoothing))
    lost = jax.nn.sigmoid(-margin) * (log_sigmoid(-margin) - jnp.log(label_smoothing))
    return won + lost, rewards(hw, hl, beta)


def nca_pair(
    chosen_logps: Logps, rejected_logps: Logps, ref_chosen_logps: Logps, ref_rejected_logps: Logps, *, beta=0.1
) -> Losses:
    """Noise contrastive alignment of a pair: absolute likelihoods count, not only their difference.

    Formula: -log s(b hw) - 0.5 log s(-b hw) - 0.5 log s(-b hl)
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: Chen et al. 2024, arXiv 2402.05369.
    Peers: TRL `nca_pair` the same.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    logged = rewards(hw, hl, beta)
    won, lost = logged["chosen_rewards"], logged["rejected_rewards"]
    return -log_sigmoid(won) - 0.5 * log_sigmoid(-won) - 0.5 * log_sigmoid(-lost), logged


def bco_pair(
    chosen_logps: Logps, rejected_logps: Logps, ref_chosen_logps: Logps, ref_rejected_logps: Logps, *, beta=0.1
) -> Losses:
    """Binary classifier optimisation of a pair, without the reward shift.

    Formula: -log s(b hw) - log s(-b hl)
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: Jung et al. 2024, arXiv 2404.04656, which subtracts a running mean of the rewards (delta) from each reward.
    Peers: TRL 1.16 `bco_pair` the same, without delta as well.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return -log_sigmoid(beta * hw) - log_sigmoid(-beta * hl), rewards(hw, hl, beta)


def sppo_hard(
    chosen_logps: Logps, rejected_logps: Logps, ref_chosen_logps: Logps, ref_rejected_logps: Logps, *, beta=0.1
) -> Losses:
    """Self-play preference optimisation with hard labels: each log-ratio is drawn to +-1/(2 beta).

    Formula: (hw - 1/(2b))^2 + (hl + 1/(2b))^2, 1/b is the paper's eta
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: Wu et al. 2024, arXiv 2405.00675, equation 4.7 with win probabilities 1 and 0.
    Peers: TRL `sppo_hard` the same.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return (hw - 0.5 / beta) ** 2 + (hl + 0.5 / beta) ** 2, rewards(hw, hl, beta)


@whole_step
def aot(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    *,
    beta=0.1,
    label_smoothing=0.0,
) -> Losses:
    """Alignment by optimal transport: the step's sorted margins under the policy against those under the reference.

    Formula: d = sort(lw - ll) - sort(rw - rl); -(1-e) log s(bd) - e log s(-bd)
    Shapes: everything [P], float32; losses in sorted order. Rewards b hw, b hl, in the order given. Whole step: the
        sort is over all pairs of the optimizer step.
    Paper: Melnyk et al. 2024, arXiv 2406.05882 (the paired variant).
    Peers: TRL `aot` sorts within each microbatch of each device, so its loss depends on both.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    policy = jnp.sort(wide(chosen_logps) - wide(rejected_logps))
    reference = jnp.sort(wide(ref_chosen_logps) - wide(ref_rejected_logps))
    return smoothed(beta * (policy - reference), label_smoothing), rewards(hw, hl, beta)


@whole_step
def aot_unpaired(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    *,
    beta=0.1,
    label_smoothing=0.0,
) -> Losses:
    """Alignment by optimal transport: the step's sorted chosen log-ratios against its sorted rejected ones.

    Formula: d = sort(hw) - sort(hl); -(1-e) log s(bd) - e log s(-bd)
    Shapes: everything [P], float32; losses in sorted order. Rewards b hw, b hl, in the order given. Whole step: the
        sort is over all pairs of the optimizer step.
    Paper: Melnyk et al. 2024, arXiv 2406.05882 (the unpaired variant).
    Peers: TRL `aot_unpaired` sorts within each microbatch of each device, so its loss depends on both.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(beta * (jnp.sort(hw) - jnp.sort(hl)), label_smoothing), rewards(hw, hl, beta)


def apo_zero(
    chosen_logps: Logps, rejected_logps: Logps, ref_chosen_logps: Logps, ref_rejected_logps: Logps, *, beta=0.1
) -> Losses:
    """Anchored preference optimisation for chosen responses better than the model's own: chosen up, rejected down.

    Formula: (1 - s(b hw)) + s(b hl)
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7.
    Peers: TRL `apo_zero` the same.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    # 1 - s(x) = s(-x), which keeps its digits if s(x) is near 1.
    return jax.nn.sigmoid(-beta * hw) + jax.nn.sigmoid(beta * hl), rewards(hw, hl, beta)


def apo_down(
    chosen_logps: Logps, rejected_logps: Logps, ref_chosen_logps: Logps, ref_rejected_logps: Logps, *, beta=0.1
) -> Losses:
    """Anchored preference optimisation for chosen responses worse than the model's own: both down, rejected more.

    Formula: s(b hw) + 1 - s(b(hw - hl))
    Shapes: everything [P], float32. Rewards b hw, b hl.
    Paper: D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8. Raising a chosen logp can raise this loss;
        that is intended.
    Peers: TRL `apo_down` the same.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return jax.nn.sigmoid(beta * hw) + jax.nn.sigmoid(-beta * (hw - hl)), rewards(hw, hl, beta)


def discopop(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    *,
    beta=0.1,
    tau=0.05,
) -> Losses:
    """DiscoPOP, a loss found by a language model: a logistic and an exponential loss, blended by the margin.

    Formula: u = bD, m = s(u/tau); -log s(u) (1-m) + exp(-u) m
    Shapes: everything [P], float32. Rewards b hw, b hl. 0 < tau < 1: from 1 on it grows without bound.
    Paper: Lu et al. 2024, arXiv 2406.08414, equation 5 (log-ratio modulated loss).
    Peers: TRL `discopop` the same, except that its exp(-u) overflows from u < -88 on and its loss is then NaN.
    """
    require(beta, "beta", 0.0, open_low=True)
    require(tau, "tau", 0.0, 1.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    margin = beta * (hw - hl)
    logistic = -log_sigmoid(margin) * jax.nn.sigmoid(-margin / tau)
    # In one exponent: by itself exp(-u) overflows, just where m is 0.
    exponential = jnp.exp(-margin + log_sigmoid(margin / tau))
    return logistic + exponential, rewards(hw, hl, beta)


def sigmoid_norm(
    chosen_logps: Logps,
    rejected_logps: Logps,
    ref_chosen_logps: Logps,
    ref_rejected_logps: Logps,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    beta=0.1,
) -> Losses:
    """Length-normalised DPO: log-ratios per token.

    Formula: -log s(b (hw/|yw| - hl/|yl|))
    Shapes: everything [P]; lengths are completion tokens; float32. Rewards b hw, b hl.
    Paper: Lambert et al. 2024 (Tulu 3), arXiv 2411.15124; there beta is 5.
    Peers: TRL `sigmoid_norm` the same; its default beta of 0.1, kept here, is small for a margin per token.
    """
    require(beta, "beta", 0.0, open_low=True)
    hw, hl = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    margin = per_token(hw, chosen_lengths) - per_token(hl, rejected_lengths)
    return -log_sigmoid(beta * margin), rewards(hw, hl, beta)
