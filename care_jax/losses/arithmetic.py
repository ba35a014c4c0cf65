"""The elementwise functions that the losses are made of; value and gradient are safe at the ends of float32."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, Shaped

from care_jax.errors import UserError

Logps = Float[Array | np.ndarray, "*shape"]
Lengths = Num[Array | np.ndarray, "*shape"]
Flags = Shaped[Array | np.ndarray, "*shape"]
Scalar = float | int | np.number | Array  # a hyperparameter
Losses = tuple[Float[Array, "*shape"], dict[str, Array]]

# exp(80) = 5.5e34: the largest round exponent whose exponential, times a batch of coefficients, stays in float32.
MAX_EXPONENT = 80.0
# Nearer to 0 than this, log(1 - exp(x)) is continued by its tangent: the true slope, 1/x, has no bound.
LOG1MEXP_EDGE = 1e-7


def wide(x: ArrayLike) -> Array:
    """Returns `x` as an array of at least float32: bfloat16 and integers become float32, float64 stays."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def per_token(logps: ArrayLike, lengths: ArrayLike) -> Array:
    """Returns the mean log-probability per token in nats; a length below 1 counts as 1."""
    return wide(logps) / jnp.maximum(wide(lengths), 1.0)


def log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + exp(-x))), elementwise; about x if x is very negative, never -inf for finite x."""
    return jax.nn.log_sigmoid(x)


def smoothed(margin: Array, label_smoothing: Scalar) -> Array:
    """-(1-e) log s(u) - e log s(-u): the logistic loss when a label is wrong with probability e."""
    require(label_smoothing, "label_smoothing", 0.0, 0.5)
    return -(1.0 - label_smoothing) * log_sigmoid(margin) - label_smoothing * log_sigmoid(-margin)


def log1mexp(x: Array) -> Array:
    """log(1 - exp(x)) for x <= 0, elementwise.

    Uses two forms, each where the other loses digits (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").
    From -1e-7 to 0, where value and slope go to -inf, it is continued by the tangent.
    """
    clipped = jnp.minimum(x, -LOG1MEXP_EDGE)
    far = clipped < -np.log(2.0)
    # Each branch gets only arguments for which it is finite: a NaN gradient of the other branch would come through.
    from_far = jnp.log1p(-jnp.exp(jnp.where(far, clipped, -1.0)))
    from_near = jnp.log(-jnp.expm1(jnp.where(far, -0.1, clipped)))
    tangent = jnp.maximum(x + LOG1MEXP_EDGE, 0.0) / np.expm1(LOG1MEXP_EDGE)
    return jnp.where(far, from_far, from_near) - tangent


def require(value: object, name: str, low: float, below: float = float("inf"), *, open_low: bool = False) -> None:
    """Raises UserError unless low <= value < below (low < value with `open_low`); traced values are not checked."""
    if not isinstance(value, int | float):
        return
    if value < low or value >= below or (open_low and value == low) or value != value:
        upper = "" if below == float("inf") else f" and below {below:g}"
        raise UserError(f"loss.{name} must be {'above' if open_low else 'at least'} {low:g}{upper}, found {value:g}")
