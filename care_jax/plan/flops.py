"""Floating-point operations of a program's matrix products, counted in its jaxpr: recomputation included."""

import math
from typing import Any

import jax.extend


def count(jaxpr: Any, unknown_trips: int = 1) -> int:
    """2 operations a multiply-add, over all devices; a loop whose end is traced is counted `unknown_trips` times.

    Of `lax.cond` and `lax.switch` the dearest branch. What a Pallas kernel multiplies is not seen.
    """
    total = 0
    for equation in _inner(jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "pallas_call":
            continue
        elif name == "scan":
            total += params["length"] * count(params["jaxpr"], unknown_trips)
        elif name == "while":
            total += unknown_trips * count(params["body_jaxpr"], unknown_trips)
        elif name == "cond":
            total += max(count(branch, unknown_trips) for branch in params["branches"])
        elif name == "shard_map":
            total += params["mesh"].size * count(params["jaxpr"], unknown_trips)
        else:
            total += sum(count(one, unknown_trips) for one in _jaxprs(params))
    return total


def _inner(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, jax.extend.core.ClosedJaxpr) else jaxpr


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    kinds = (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr)
    return [value for value in params.values() if isinstance(value, kinds)]
