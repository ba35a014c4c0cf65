"""Optimizers: moments keep their dtype, whatever that of the weights; updates are computed in float32."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from care_jax.config import OptimizerConfig
from care_jax.training.optimizer import make_optimizer, make_schedule

RATE = 0.01


def after(name, weights, moments, gradients, steps=3):
    """Weights after all steps, and the state after each, from weights of 0.5."""
    config = OptimizerConfig(name=name, learning_rate=RATE, warmup=0, schedule="constant", moment_dtype=moments)
    rule = make_optimizer(config, make_schedule(config, steps))
    params = {"w": jnp.full((8, 256), 0.5, weights)}
    states = [rule.init(params)]
    for number in range(steps):
        gradient = {"w": jnp.asarray(gradients[number])}
        updates, state = jax.jit(rule.update)(gradient, states[-1], params)
        params = optax.apply_updates(params, updates)
        states.append(state)
    return params["w"], states


@pytest.mark.parametrize("accumulated", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "weights", "moments"),
    [
        *itertools.product(["adamw", "lion", "adafactor"], ["float32", "bfloat16"], ["float32", "bfloat16"]),
        *(("sgd", weights, "float32") for weights in ("float32", "bfloat16")),
    ],
)
def test_moments_keep_their_dtype(name, weights, moments, accumulated):
    gradients = np.random.default_rng(0).normal(size=(3, 8, 256)).astype(jnp.dtype(accumulated))
    found, states = after(name, weights, moments, gradients)
    assert found.dtype == weights
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in states]
    assert kinds[0] == kinds[1] == kinds[-1], "the state of a skipped step has the same shapes and dtypes"
    floats = [x.dtype for x in jax.tree.leaves(states[0]) if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim]
    assert bool(floats) == (name != "sgd")
    assert all(dtype == moments for dtype in floats)
    exact, _ = after(name, "float32", "float32", gradients)
    assert float(jnp.abs(exact - 0.5).max()) > RATE / 10
    # Three roundings of weights near 0.5 to 8 bits, and of moments.
    tolerance = 1e-7 if weights == moments == "float32" else 3 * 2.0**-9 + RATE / 10
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, rtol=0, atol=tolerance)
