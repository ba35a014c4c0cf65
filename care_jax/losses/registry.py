"""Finds losses by name: built-in ones, and any other by `module:function`."""

import functools
import importlib
import math
import os
import sys

import jax
import jax.numpy as jnp

from care_jax.errors import UserError, nearest
from care_jax.losses import divergences, listwise, pairwise, reference_free, unpaired
from care_jax.losses.signature import Loss, spec

# Each module lists its losses in `__all__`; a new loss is named there, and nowhere else.
BUILT_IN: dict[str, Loss] = {
    name: getattr(module, name)
    for module in (pairwise, divergences, reference_free, unpaired, listwise)
    for name in module.__all__
}

# Names that users know from elsewhere, and what they are here.
_KNOWN_ELSEWHERE = {
    "sigmoid": "TRL's 'sigmoid' is 'dpo'",
    "cdpo": "conservative DPO is 'dpo' with label_smoothing",
    "robust": "TRL's 'robust' is 'robust_dpo'",
    "slic": "SLiC's hinge is 'hinge'",
    "rpo": "RPO is a list of two losses: dpo, and sft with a weight",
    "mpo": "MPO is a list of three losses with weights: dpo 0.8, bco_pair 0.2, sft 1.0",
    "kto_pair": "KTO here is 'kto', which takes labelled responses",
    "bco": "BCO without the running shift is 'bco_pair'",
    "ld_dpo": "LD-DPO needs more than one number per response: docs/losses.md",
    "wpo": "WPO needs more than one number per response: docs/losses.md",
}
_GAMMA = "set gamma_beta_ratio, which is gamma / beta as in SimPO's repository (TRL's simpo_gamma is gamma)"
_HINTS: dict[str, dict[str, str]] = {
    **{name: {"gamma": _GAMMA, "simpo_gamma": _GAMMA} for name in ("simpo", "simpo_hinge", "cpo_simpo")},
    "ipo": {"tau": "beta is IPO's tau here"},
    "discopop": {"discopop_tau": "it is called tau here"},
    "dpo_alpha": {"f_alpha_divergence_coef": "it is called alpha here"},
}

_TYPE_NAMES = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text", tuple: "a list"}


def names() -> list[str]:
    """Returns the names of the built-in losses, sorted."""
    return sorted(BUILT_IN)


def get(name: str) -> Loss:
    """Returns the loss called `name`: a built-in one, or "module:function" of the working directory or a package.

    Raises UserError for an unknown name (with the nearest one), a missing module or function, and a function whose
    signature is not that of a loss.
    """
    if ":" in name:
        return _import(name)
    if name not in BUILT_IN:
        hint = _KNOWN_ELSEWHERE.get(name.lower())
        close = f": {hint}" if hint else nearest(name, names())
        raise UserError(
            f"loss.name: unknown loss {name!r}{close}. Built in: {', '.join(names())}; your own is 'module:function'"
        )
    return BUILT_IN[name]


def _import(name: str) -> Loss:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(f"loss.name: {name!r} is neither a built-in loss nor 'module:function'")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # If the user's own module fails to import another one, that is the user's bug and keeps its traceback.
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise
        raise UserError(
            f"loss.name: {name!r}: no module {module_name!r} in {os.getcwd()} or among the installed packages"
        ) from None
    loss = getattr(module, attribute, None)
    if not callable(loss):
        problem = "is not a function" if loss is not None else "is missing"
        near = nearest(attribute, [key for key, value in vars(module).items() if callable(value) and key[0] != "_"])
        raise UserError(f"loss.name: {name!r}: {attribute!r} {problem} in {module.__file__}{near}")
    spec(loss)
    return loss


def bind(name: str, **hyperparameters: object) -> Loss:
    """Returns the loss `name` with hyperparameters set: a functools.partial, whose signature `spec` reads as well.

    Raises UserError for a key that the loss does not have, a value of another type than its default, and one that a
    built-in loss refuses. A number may be given as text (YAML 1.1 reads 1e-6 as text).
    """
    loss = get(name)
    known = spec(loss).hyperparameters
    values: dict[str, object] = {}
    for key, value in hyperparameters.items():
        if key not in known:
            hint = _HINTS.get(name, {}).get(key)
            close = f": {hint}" if hint else nearest(key, list(known))
            takes = ", ".join(f"{k} = {default!r}" for k, (_, default) in known.items()) or "no hyperparameter"
            raise UserError(f"loss.{key}: loss {name!r} has no {key!r}{close}. It takes {takes}")
        values[key] = _convert(name, key, value, *known[key])
    bound = functools.partial(loss, **values)
    if values and name in BUILT_IN:
        # Traced with shapes alone, without a device: a value out of range fails here, before a model is loaded.
        jax.eval_shape(bound, **{quantity: _shape(quantity) for quantity in spec(loss).needs})
    return bound


def _shape(quantity: str) -> jax.ShapeDtypeStruct:
    shape = () if quantity == "kl" else (2, 2) if quantity.startswith("group_") else (2,)
    return jax.ShapeDtypeStruct(shape, bool if quantity in ("desirable", "group_mask") else jnp.float32)


def _convert(name: str, key: str, value: object, kind: type, default: object) -> object:
    """Returns `value` as a `kind` (or None if that is the default); raises UserError if it is of another type."""
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
        f"loss.{key}: loss {name!r} expects {_TYPE_NAMES.get(kind, f'a {kind.__name__}')}{hint}, found {value!r}"
    )
