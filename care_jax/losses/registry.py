"""Losses by name: the built-in ones, and `module:function` for any other."""

import functools
import importlib
import math
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp

from care_jax.errors import UserError, nearest
from care_jax.losses import divergences, listwise, pairwise, reference_free, unpaired
from care_jax.losses.signature import Loss, spec, unwrap

BUILT_IN: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (
        pairwise.dpo,
        pairwise.robust_dpo,
        pairwise.ipo,
        pairwise.hinge,
        pairwise.exo_pair,
        pairwise.nca_pair,
        pairwise.bco_pair,
        pairwise.sppo_hard,
        pairwise.aot,
        pairwise.aot_unpaired,
        pairwise.apo_zero,
        pairwise.apo_down,
        pairwise.discopop,
        pairwise.sigmoid_norm,
        divergences.dpo_forward_kl,
        divergences.dpo_js,
        divergences.dpo_alpha,
        reference_free.simpo,
        reference_free.simpo_hinge,
        reference_free.cpo,
        reference_free.cpo_simpo,
        reference_free.orpo,
        reference_free.sft,
        unpaired.kto,
        unpaired.nll,
        listwise.plackett_luce,
        listwise.gap_dpo,
    )
}

# Names that users bring along, and what they are here.
_KNOWN_ELSEWHERE = {
    "sigmoid": "TRL's 'sigmoid' is 'dpo'",
    "cdpo": "conservative DPO is 'dpo' with label_smoothing",
    "robust": "TRL's 'robust' is 'robust_dpo'",
    "slic": "SLiC's hinge is 'hinge'",
    "rpo": "RPO is a list of two losses: dpo, and sft with a weight",
    "mpo": "MPO is a list of three losses with weights: dpo 0.8, bco_pair 0.2, sft 1.0",
    "kto_pair": "KTO here is 'kto', of labelled responses",
    "bco": "without the running shift it is 'bco_pair'",
    "ld_dpo": "LD-DPO needs more than one number a response: docs/losses.md",
    "wpo": "WPO needs more than one number a response: docs/losses.md",
}
_GAMMA = "gamma_beta_ratio is what you set: gamma / beta, as in SimPO's repository (TRL's simpo_gamma is gamma)"
_TAU = "beta is IPO's tau here"
_HINTS: dict[str, dict[str, str]] = {
    "simpo": {"gamma": _GAMMA, "simpo_gamma": _GAMMA},
    "simpo_hinge": {"gamma": _GAMMA, "simpo_gamma": _GAMMA},
    "cpo_simpo": {"gamma": _GAMMA, "simpo_gamma": _GAMMA},
    "ipo": {"tau": _TAU},
    "discopop": {"discopop_tau": "it is called tau here"},
    "dpo_alpha": {"f_alpha_divergence_coef": "it is called alpha here"},
}


_NAMES = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text", tuple: "a list"}


def names() -> list[str]:
    """The names of the built-in losses, sorted."""
    return sorted(BUILT_IN)


def get(name: str) -> Loss:
    """The loss called `name`: a built-in one, or "module:function" from the working directory or an installed package.

    UserError for a name that is none of these (with the nearest one), for a module or function that is not there, and
    for a function whose signature is no loss's.
    """
    if ":" in name:
        return _imported(name)
    if name not in BUILT_IN:
        hint = _KNOWN_ELSEWHERE.get(name.lower())
        close = f": {hint}" if hint else nearest(name, names())
        raise UserError(
            f"loss.name: unknown loss {name!r}{close}. Built in: {', '.join(names())}; your own is 'module:function'"
        )
    return BUILT_IN[name]


def _imported(name: str) -> Loss:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(f"loss.name: {name!r} is neither a built-in loss nor 'module:function'")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module fails to find is the user's bug, and keeps its traceback.
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise
        raise UserError(
            f"loss.name: {name!r}: no module {module_name!r} in {os.getcwd()} or among the installed packages"
        ) from None
    loss = getattr(module, attribute, None)
    if not callable(loss):
        found = "is not a function" if loss is not None else "is not there"
        near = nearest(attribute, [key for key, value in vars(module).items() if callable(value) and key[0] != "_"])
        raise UserError(f"loss.name: {name!r}: {attribute!r} {found} in {module.__file__}{near}")
    spec(loss)
    return loss


def bind(name: str, **hyperparameters: Any) -> Loss:
    """The loss `name` with hyperparameters set: a functools.partial that `spec` sees through.

    UserError for a key that the loss does not have, a value of another type than its default, and one that a built-in
    loss refuses. A number may come as text (YAML 1.1 reads 1e-6 so).
    """
    loss = get(name)
    known = spec(loss).hyperparameters
    values = {}
    for key, value in hyperparameters.items():
        if key not in known:
            hint = _HINTS.get(name, {}).get(key)
            close = f": {hint}" if hint else nearest(key, list(known))
            takes = ", ".join(f"{k} = {default!r}" for k, (_, default) in known.items()) or "no hyperparameter"
            raise UserError(f"loss.{key}: loss {name!r} has no {key!r}{close}. It takes {takes}")
        values[key] = _typed(name, key, value, *known[key])
    bound = functools.partial(loss, **values)
    if values and name in BUILT_IN:
        # Traced with shapes alone (no device is touched), so that a value out of range fails here, not after the model.
        jax.eval_shape(bound, **{quantity: _shape(quantity) for quantity in spec(loss).needs})
    return bound


def _shape(quantity: str) -> jax.ShapeDtypeStruct:
    shape = () if quantity == "kl" else (2, 2) if quantity.startswith("group_") else (2,)
    return jax.ShapeDtypeStruct(shape, bool if quantity in ("desirable", "group_mask") else jnp.float32)


def _typed(name: str, key: str, value: Any, kind: type, default: Any) -> Any:
    """`value` as a `kind` (None where that is the default); UserError where it is none."""
    if value is None and default is None:
        return None
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (float, int) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.nan
        if kind is float and (math.isfinite(number) or number == default):
            return number
        if kind is int and number.is_integer():
            return int(number)
    elif kind is tuple and isinstance(value, list | tuple):
        return tuple(value)  # a file has only lists
    elif isinstance(value, kind):
        return value
    hint = " (its default is one; annotate it as float to take others)" if kind is int else ""
    raise UserError(
        f"loss.{key}: loss {name!r} takes {_NAMES.get(kind, f'a {kind.__name__}')} there{hint}, found {value!r}"
    )


def name_of(loss: Loss) -> str:
    """A built-in loss's name, or "module:function" of any other, through functools.partial."""
    function = unwrap(loss)
    short = getattr(function, "__name__", type(function).__name__)
    return short if BUILT_IN.get(short) is function else f"{function.__module__}:{short}"
