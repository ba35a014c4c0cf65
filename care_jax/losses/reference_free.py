"""Losses of pairs without a reference: no reference model runs for them.

In the formulas: lw, ll are logps of chosen and rejected; aw = lw/|yw|, al = ll/|yl| the mean logp per completion token;
s the sigmoid; b = beta; e = label_smoothing.
"""

import jax

from care_jax.losses.arithmetic import Lengths, Logps, Losses, log1mexp, log_sigmoid, per_token, require, smoothed, wide

__all__ = ["cpo", "cpo_simpo", "orpo", "sft", "simpo", "simpo_hinge"]  # the losses of this module


def simpo(
    chosen_logps: Logps,
    rejected_logps: Logps,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    beta=2.0,
    gamma_beta_ratio=0.25,
    label_smoothing=0.0,
) -> Losses:
    """Simple preference optimisation: mean logp per token, with a margin to win by.

    Formula: u = b (aw - al - gamma_beta_ratio); -(1-e) log s(u) - e log s(-u)
    Shapes: everything [P]; lengths are completion tokens; float32. Rewards b aw, b al.
    Paper: Meng et al. 2024, arXiv 2405.14734, equation 6; gamma_beta_ratio is its gamma / beta, as in its repository,
        which advises to start with 0.5, and a beta of 2 to 10.
    Peers: the SimPO repository the same; it counts the response's role header in |y|, care_jax and TRL do not. TRL's
        CPOTrainer takes `simpo_gamma`, the absolute gamma (gamma_beta_ratio times beta), with a beta of 0.1 and an NLL
        term (cpo_alpha 1) by default. HALOs logs rewards without beta.
    """
    require(beta, "beta", 0.0, open_low=True)
    aw, al = per_token(chosen_logps, chosen_lengths), per_token(rejected_logps, rejected_lengths)
    rewards = {"chosen_rewards": beta * aw, "rejected_rewards": beta * al}
    return smoothed(beta * (aw - al - gamma_beta_ratio), label_smoothing), rewards


def simpo_hinge(
    chosen_logps: Logps,
    rejected_logps: Logps,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    beta=2.0,
    gamma_beta_ratio=0.25,
) -> Losses:
    """SimPO with a hinge in place of the logistic loss.

    Formula: max(0, 1 - b (aw - al - gamma_beta_ratio))
    Shapes: everything [P]; lengths are completion tokens; float32. Rewards b aw, b al.
    Paper: Meng et al. 2024, arXiv 2405.14734; the variant is its repository's loss_type `hinge`.
    Peers: the SimPO repository the same.
    """
    require(beta, "beta", 0.0, open_low=True)
    aw, al = per_token(chosen_logps, chosen_lengths), per_token(rejected_logps, rejected_lengths)
    rewards = {"chosen_rewards": beta * aw, "rejected_rewards": beta * al}
    return jax.nn.relu(1.0 - beta * (aw - al - gamma_beta_ratio)), rewards


def cpo(
    chosen_logps: Logps, rejected_logps: Logps, chosen_lengths: Lengths, *, beta=0.1, label_smoothing=0.0, cpo_alpha=1.0
) -> Losses:
    """Contrastive preference optimisation: DPO under a uniform reference, and the chosen's NLL.

    Formula: u = b (lw - ll); -(1-e) log s(u) - e log s(-u) - cpo_alpha aw
    Shapes: everything [P]; lengths are completion tokens; float32. Rewards b lw, b ll.
    Paper: Xu et al. 2024, arXiv 2401.08417, equation 3 and its NLL term.
    Peers: TRL's CPOTrainer takes the NLL as a mean over the microbatch's tokens, here it is each pair's mean per
        token: equal if chosen lengths are. A list of this loss with cpo_alpha 0, and `sft`, is exactly TRL's.
    """
    require(beta, "beta", 0.0, open_low=True)
    lw, ll = wide(chosen_logps), wide(rejected_logps)
    losses = smoothed(beta * (lw - ll), label_smoothing) - cpo_alpha * per_token(lw, chosen_lengths)
    return losses, {"chosen_rewards": beta * lw, "rejected_rewards": beta * ll}


def cpo_simpo(
    chosen_logps: Logps,
    rejected_logps: Logps,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    beta=2.0,
    gamma_beta_ratio=0.25,
    label_smoothing=0.0,
    cpo_alpha=1.0,
) -> Losses:
    """SimPO with CPO's NLL term.

    Formula: u = b (aw - al - gamma_beta_ratio); -(1-e) log s(u) - e log s(-u) - cpo_alpha aw
    Shapes: everything [P]; lengths are completion tokens; float32. Rewards b aw, b al.
    Paper: Meng et al. 2024, arXiv 2405.14734, and Xu et al. 2024, arXiv 2401.08417; joined in
        github.com/fe1ixxu/CPO_SIMPO.
    Peers: TRL's CPOTrainer with loss_type `simpo` takes the NLL as a mean over the microbatch's tokens, here it is each
        pair's mean per token: equal if chosen lengths are. A list of `simpo` and `sft` is exactly TRL's.
    """
    losses, rewards = simpo(
        chosen_logps,
        rejected_logps,
        chosen_lengths,
        rejected_lengths,
        beta=beta,
        gamma_beta_ratio=gamma_beta_ratio,
        label_smoothing=label_smoothing,
    )
    return losses - cpo_alpha * per_token(chosen_logps, chosen_lengths), rewards


def orpo(
    chosen_logps: Logps, rejected_logps: Logps, chosen_lengths: Lengths, rejected_lengths: Lengths, *, beta=0.1
) -> Losses:
    """Odds ratio preference optimisation: the chosen's NLL, and the log odds ratio of the mean likelihoods per token.

    Formula: -aw - b log s(o), o = (aw - al) - (log(1 - exp aw) - log(1 - exp al))
    Shapes: everything [P]; lengths are completion tokens; float32. Rewards b aw, b al; `log_odds_ratio` is o. Within
        1e-7 of a mean logp of 0, where o has no bound, log(1 - exp a) is continued by its tangent.
    Paper: Hong et al. 2024, arXiv 2403.07691, equations 6 and 7; b is its lambda.
    Peers: TRL's ORPOTrainer takes the NLL over prompt and completion, as a mean over the microbatch's tokens; here it
        is each pair's mean per completion token, as in the paper. At a mean logp of 0 TRL's is infinite.
    """
    require(beta, "beta", 0.0)
    aw, al = per_token(chosen_logps, chosen_lengths), per_token(rejected_logps, rejected_lengths)
    log_odds = (aw - al) - (log1mexp(aw) - log1mexp(al))
    rewards = {"chosen_rewards": beta * aw, "rejected_rewards": beta * al, "log_odds_ratio": log_odds}
    return -aw - beta * log_sigmoid(log_odds), rewards


def sft(chosen_logps: Logps, chosen_lengths: Lengths) -> Losses:
    """Negative log-likelihood per token of the chosen, to add to any other loss of pairs (RPO is dpo and this).

    Formula: -lw/|yw|, weighted by |yw|: the mean over the step is one over tokens
    Shapes: everything [P]; lengths are completion tokens; float32. `weights` holds the lengths.
    Paper: Pang et al. 2024 (RPO), arXiv 2404.19733, the second term of its loss.
    Peers: TRL `sft` is the token mean over a microbatch of a device; here it is over the whole step.
    """
    weights = wide(chosen_lengths)
    return -per_token(chosen_logps, chosen_lengths), {"weights": weights}
