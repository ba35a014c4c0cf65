"""Preference losses: plain functions of one log-probability per response.

    losses, aux = care_jax.losses.dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1)

The positional parameters of a loss name the quantities it needs, its keyword-only parameters are its hyperparameters:
the signature is the registration (`spec`). `get("dpo")`, `get("my_module:my_loss")`, `names()`.
"""

from care_jax.losses.divergences import *  # noqa: F403
from care_jax.losses.listwise import *  # noqa: F403
from care_jax.losses.pairwise import *  # noqa: F403
from care_jax.losses.reference_free import *  # noqa: F403
from care_jax.losses.registry import BUILT_IN, bind, get, names
from care_jax.losses.signature import QUANTITIES, Spec, spec, whole_step
from care_jax.losses.unpaired import *  # noqa: F403
from care_jax.losses.unpaired import kto_weight_ratio

__all__ = ["QUANTITIES", "Spec", "bind", "get", "kto_weight_ratio", "names", "spec", "whole_step"]
__all__ += list(BUILT_IN)
