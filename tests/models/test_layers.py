"""The layers by themselves: the hand-written gradient of a linear map, and which angles a rotation uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.models.arch import Rope
from care_jax.models.layers import linear, rope_frequencies, rotate


@pytest.mark.parametrize(("inputs", "outputs"), [((6,), (2, 4)), ((2, 4), (6,))])
def test_the_gradient_of_a_linear_map_is_that_of_its_einsum(inputs, outputs):
    rng = np.random.default_rng(0)
    x, weight, seen = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((2, 3, *inputs), (*outputs, *inputs), (2, 3, *outputs))
    )

    def ours(x, weight):
        return jnp.sum(seen * linear(x, {"weight": weight}, None, 1.0, dims=len(inputs)))

    def plain(x, weight):
        return jnp.sum(
            seen * jnp.tensordot(x, weight, (tuple(range(2, x.ndim)), tuple(range(len(outputs), weight.ndim))))
        )

    for got, expected in zip(jax.grad(ours, (0, 1))(x, weight), jax.grad(plain, (0, 1))(x, weight)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_rotation_turns_each_pair_by_its_angle():
    angles = 3 * rope_frequencies(Rope(theta=100.0), 4)
    np.testing.assert_allclose(angles, [3.0, 0.3], rtol=1e-6)
    table = jnp.cos(angles)[None, None], jnp.sin(angles)[None, None]
    turned = rotate(jnp.asarray([1.0, 0.0, 0.0, 1.0])[None, None, None], table)[0, 0, 0]
    np.testing.assert_allclose(turned, [np.cos(3), -np.sin(0.3), np.sin(3), np.cos(0.3)], rtol=1e-5)
