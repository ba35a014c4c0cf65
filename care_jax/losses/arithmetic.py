"""The few scalar functions that every loss is made of, safe in value and gradient at the ends of float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from care_jax.errors import UserError

Logps = Float[Array | np.ndarray, "*shape"]
Lengths = Num[Array | np.ndarray, "*shape"]
Flags = Shaped[Array | np.ndarray, "*shape"]
Losses = tuple[Float[Array, "*shape"], dict[str, Any]]

# exp(80) = 5.5e34: the largest round exponent whose exponential, times a batch of coefficients, stays in float32.
MAX_EXPONENT = 80.0
# Within this of 0, log(1 - exp(x)) goes on as its tangent: the true slope, 1/x, has no bound.
LOG1MEXP_EDGE = 1e-7


def wide(x: Any) -> Array:
    """`x` as an array of at least float32: bfloat16 and integers become float32, float64 stays."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def per_token(logps: Any, lengths: Any) -> Array:
    """Mean log-probability a token, natural units (nats); a length below 1 counts as 1."""
    return wide(logps) / jnp.maximum(wide(lengths), 1.0)


def log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + exp(-x))), elementwise; about x where x is very negative, never -inf for finite x."""
    return jax.nn.log_sigmoid(x)


def smoothed(margin: Array, label_smoothing: Any) -> Array:
    """-(1-e) log s(u) - e log s(-u): the logistic loss when a label is wrong with probability e."""
    require(label_smoothing, "label_smoothing", 0.0, 0.5)
    return -(1.0 - label_smoothing) * log_sigmoid(margin) - label_smoothing * log_sigmoid(-margin)


def log1mexp(x: Array) -> Array:
    """log(1 - exp(x)) for x <= 0, elementwise.

    Two forms, each where the other loses its digits (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").
    From -1e-7 to 0, where value and slope run to -inf, it goes on along the tangent.
    """
    clipped = jnp.minimum(x, -LOG1MEXP_EDGE)
    far = clipped < -np.log(2.0)
    # Each branch is fed only arguments that it can take: a NaN gradient of the branch not taken would come through.
    from_far = jnp.log1p(-jnp.exp(jnp.where(far, clipped, -1.0)))
    from_near = jnp.log(-jnp.expm1(jnp.where(far, -0.1, clipped)))
    tangent = jnp.maximum(x + LOG1MEXP_EDGE, 0.0) / np.expm1(LOG1MEXP_EDGE)
    return jnp.where(far, from_far, from_near) - tangent


def require(value: Any, name: str, low: float, below: float = float("inf"), *, open_low: bool = False) -> None:
    """A UserError unless low <= value < below (low < value with `open_low`); traced values are taken as they are."""
    if not isinstance(value, int | float):
        return
    if value < low or value >= below or (open_low and value == low) or value != value:
        upper = "" if below == float("inf") else f" and below {below:g}"
        raise UserError(f"loss.{name} must be {'above' if open_low else 'at least'} {low:g}{upper}, found {value:g}")
