"""Operations counted in a jaxpr."""

import jax
import jax.numpy as jnp

from care_jax.plan import flops


def test_flops_are_those_of_matrix_products_loops_and_recomputation_included():
    def layers(x, weights):
        @jax.checkpoint
        def one(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(one, x, weights)[0])

    x, weights = jnp.ones((4, 8)), jnp.ones((3, 8, 8))
    forward = 3 * 2 * 4 * 8 * 8
    assert flops.count(jax.make_jaxpr(layers)(x, weights)) == forward
    # Two products a layer backward, and its forward again.
    assert flops.count(jax.make_jaxpr(jax.grad(layers, (0, 1)))(x, weights)) == 4 * forward

    def looped(x, w, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ w, x)

    assert flops.count(jax.make_jaxpr(looped)(x, weights[0], 7), unknown_trips=5) == 5 * 2 * 4 * 8 * 8
