"""Floating-point operations of a program's matrix products, counted in its jaxpr; recomputation counts too."""

import math

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(jaxpr: Jaxpr | ClosedJaxpr, unknown_trips: int = 1) -> int:
    """Returns the operations over all devices: 2 per multiply-add.

    unknown_trips: iterations of a loop whose number of iterations is traced. Of the branches of `lax.cond` and
    `lax.switch`, only the most expensive one counts. Products inside a Pallas kernel are not counted.
    """
    total = 0
    for equation in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, product = equation.invars[0].aval, equation.outvars[0].aval
            assert isinstance(left, ShapedArray) and isinstance(product, ShapedArray)  # noqa: PT018
            total += 2 * math.prod(product.shape) * math.prod(left.shape[axis] for axis in contracted)
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
            total += sum(
                count(value, unknown_trips) for value in params.values() if isinstance(value, Jaxpr | ClosedJaxpr)
            )
    return total
