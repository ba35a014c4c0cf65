"""Reads the signature of a loss: which quantities of which view it needs, and what a configuration may set."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from care_jax.errors import UserError, nearest

QUANTITIES: dict[str, tuple[str, ...]] = {
    "pairs": (
        "chosen_logps",
        "rejected_logps",
        "ref_chosen_logps",
        "ref_rejected_logps",
        "chosen_lengths",
        "rejected_lengths",
        "chosen_ratings",
        "rejected_ratings",
    ),
    "unpaired": ("logps", "ref_logps", "lengths", "ratings", "desirable", "kl"),
    "lists": ("group_logps", "group_ref_logps", "group_lengths", "group_ratings", "group_mask"),
}
_VIEW_OF = {name: view for view, names in QUANTITIES.items() for name in names}
_POLICY = ("chosen_logps", "rejected_logps", "logps", "group_logps")
_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "group_ref_logps", "kl")
_PLAIN_TYPES = {"float": float, "int": int, "bool": bool, "str": str}
# The keys that a configuration has for every loss.
_RESERVED = ("name", "weight")

Loss = Callable[..., Any]


@dataclass(frozen=True)
class Spec:
    """What the signature of a loss says.

    needs: its quantities in order. hyperparameters: (type, default) of each keyword-only parameter; the type of a
    `float | None` is float. needs_ref: whether reference logps are computed (also for `kl`). needs_kl: whether
    mismatched completions are built. whole_step: whether the loss couples its inputs, and so must get all units of the
    step in one call.
    """

    name: str
    view: str
    needs: tuple[str, ...]
    hyperparameters: dict[str, tuple[type, object]]
    needs_ref: bool
    needs_kl: bool
    whole_step: bool


def whole_step(loss: Loss) -> Loss:
    """Marks a loss that couples its inputs (sorts them, shifts by their mean): it gets the whole step in one call."""
    loss.whole_step = True  # type: ignore[attr-defined]
    return loss


def unwrap(loss: Loss) -> Loss:
    """Returns the function below any functools.partial."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def _marked(loss: Loss) -> bool:
    """Whether the loss, or the function below a functools.partial, is marked `whole_step`."""
    return bool(getattr(loss, "whole_step", False)) or (isinstance(loss, functools.partial) and _marked(loss.func))


def spec(loss: Loss) -> Spec:
    """Reads a loss's signature, also below functools.partial; raises UserError if it is not that of a loss."""
    function = unwrap(loss)
    name = getattr(function, "__name__", type(function).__name__)
    needs: list[str] = []
    hyperparameters: dict[str, tuple[type, object]] = {}
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        raise UserError(f"loss {name}: has no signature that Python can read ({_listing()})") from None
    parameters = signature.parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(
                f"loss {name}: parameter *{parameter.name} is not supported: name each quantity, and each "
                "hyperparameter after *"
            )
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.name in _VIEW_OF:
            raise UserError(f"loss {name}: {parameter.name!r} is before a /, but quantities are passed by name too")
        if parameter.kind is parameter.KEYWORD_ONLY:
            hyperparameters[parameter.name] = (_type_of(name, parameter), parameter.default)
        else:
            needs.append(parameter.name)
    return Spec(
        name=name,
        view=_view(name, needs),
        needs=tuple(needs),
        hyperparameters=hyperparameters,
        needs_ref=any(quantity in _REFERENCE for quantity in needs),
        needs_kl="kl" in needs,
        whole_step=_marked(loss),
    )


def _listing() -> str:
    return "; ".join(f"{view}: {' '.join(names)}" for view, names in QUANTITIES.items())


def _view(name: str, needs: list[str]) -> str:
    for quantity in needs:
        if quantity not in _VIEW_OF:
            raise UserError(
                f"loss {name}: unknown quantity {quantity!r}{nearest(quantity, list(_VIEW_OF))}. Positional parameters "
                f"are quantities ({_listing()}); hyperparameters come after * and have defaults"
            )
    views = {_VIEW_OF[quantity]: quantity for quantity in reversed(needs)}
    if len(views) > 1:
        mixed = ", ".join(f"{quantity!r} of {view}" for view, quantity in sorted(views.items()))
        raise UserError(f"loss {name}: quantities of two views: {mixed}. A loss takes those of one ({_listing()})")
    if not any(quantity in _POLICY for quantity in needs):
        raise UserError(f"loss {name}: takes no log-probabilities of the policy, so it trains nothing ({_listing()})")
    return next(iter(views))


def _type_of(name: str, parameter: inspect.Parameter) -> type:
    """Returns the annotated type if it is a plain one, else the type of the default."""
    if parameter.name in _VIEW_OF:
        raise UserError(f"loss {name}: {parameter.name!r} is a quantity: put it before the *")
    if parameter.default is parameter.empty:
        raise UserError(f"loss {name}: hyperparameter {parameter.name!r} has no default")
    if parameter.name in _RESERVED:
        raise UserError(
            f"loss {name}: a hyperparameter cannot be called {parameter.name!r}, which in a configuration is the "
            f"{parameter.name} of the loss: rename it"
        )
    known = _PLAIN_TYPES.get(_type_name(parameter.annotation), type(parameter.default))
    if known is type(None):
        raise UserError(
            f"loss {name}: hyperparameter {parameter.name!r} has the default None, which has no type: annotate it, "
            "as in `float | None`"
        )
    return known


def _type_name(annotation: object) -> str:
    """Returns the name of an annotation's type; of `X | None` that of X."""
    # With `from __future__ import annotations` the annotation is text.
    if isinstance(annotation, str):
        text = annotation.replace(" ", "").removeprefix("typing.")
        if text.startswith("Optional[") and text.endswith("]"):
            return text[len("Optional[") : -1]
        return text.removesuffix("|None").removeprefix("None|")
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        others = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        annotation = others[0] if len(others) == 1 else annotation
    return getattr(annotation, "__name__", "")
