"""Preference losses: plain functions of one log-probability a response.

    losses, aux = care_jax.losses.dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1)

A loss's positional parameters name the quantities it needs, its keyword-only parameters are its hyperparameters: the
signature is the registration (`spec`). `get("dpo")`, `get("my_module:my_loss")`, `names()`.
"""

from care_jax.losses.divergences import dpo_alpha, dpo_forward_kl, dpo_js
from care_jax.losses.listwise import gap_dpo, plackett_luce
from care_jax.losses.pairwise import (
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco_pair,
    discopop,
    dpo,
    exo_pair,
    hinge,
    ipo,
    nca_pair,
    robust_dpo,
    sigmoid_norm,
    sppo_hard,
)
from care_jax.losses.reference_free import cpo, cpo_simpo, orpo, sft, simpo, simpo_hinge
from care_jax.losses.registry import bind, get, name_of, names
from care_jax.losses.signature import QUANTITIES, Spec, spec, whole_step
from care_jax.losses.unpaired import kto, kto_weight_ratio, nll

__all__ = [
    "QUANTITIES",
    "Spec",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "bind",
    "cpo",
    "cpo_simpo",
    "discopop",
    "dpo",
    "dpo_alpha",
    "dpo_forward_kl",
    "dpo_js",
    "exo_pair",
    "gap_dpo",
    "get",
    "hinge",
    "ipo",
    "kto",
    "kto_weight_ratio",
    "name_of",
    "names",
    "nca_pair",
    "nll",
    "orpo",
    "plackett_luce",
    "robust_dpo",
    "sft",
    "sigmoid_norm",
    "simpo",
    "simpo_hinge",
    "spec",
    "sppo_hard",
    "whole_step",
]
