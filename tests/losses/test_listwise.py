"""Compares losses of rated lists, which no peer has, with plain loops in NumPy; for two responses, with DPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax import losses

RATINGS = np.array([[9, 5, 5, 1], [3, 3, 3, 0], [7, 2, 0, 0], [4, 8, 6, 2]], np.float64)
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
BETA = 0.3


def inputs():
    rng = np.random.default_rng(0)
    logps, ref = -rng.uniform(1, 30, (2, 4, 4))
    # The values in padding must not matter.
    logps[~MASK], ref[~MASK] = np.nan, 7.0
    return logps, ref


def softplus(x):
    return np.logaddexp(0.0, x)


def plackett_luce(h, ratings):
    return sum(
        np.log(np.exp(h[i]) + sum(np.exp(h[j]) for j in range(len(h)) if ratings[j] < ratings[i])) - h[i]
        for i in range(len(h))
    )


def gap_dpo(h, ratings):
    pairs = [(i, j) for i in range(len(h)) for j in range(len(h)) if ratings[i] > ratings[j]]
    gaps = [ratings[i] - ratings[j] for i, j in pairs]
    total = sum(gap * softplus(h[j] - h[i]) for gap, (i, j) in zip(gaps, pairs))
    return total / sum(gaps) if pairs else 0.0


@pytest.mark.parametrize(("name", "oracle"), [("plackett_luce", plackett_luce), ("gap_dpo", gap_dpo)])
def test_equals_a_plain_loop_in_value_and_gradient(name, oracle):
    logps, ref = inputs()
    expected = [oracle((BETA * (logps - ref))[g][MASK[g]], RATINGS[g][MASK[g]]) for g in range(4)]
    gradient = np.zeros((4, 4))
    for g, k in zip(*np.nonzero(MASK)):
        up, down = logps.copy(), logps.copy()
        up[g, k] += 1e-6
        down[g, k] -= 1e-6
        ends = [oracle((BETA * (x - ref))[g][MASK[g]], RATINGS[g][MASK[g]]) for x in (up, down)]
        gradient[g, k] = (ends[0] - ends[1]) / 2e-6

    @jax.jit
    def run(x):
        def total(x):
            values, logged = losses.get(name)(x, jnp.asarray(ref), jnp.asarray(RATINGS), jnp.asarray(MASK), beta=BETA)
            return jnp.sum(values), (values, logged)

        return jax.grad(total, has_aux=True)(x)

    with jax.enable_x64(True):
        got, (values, logged) = jax.tree.map(np.asarray, run(jnp.asarray(logps)))
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    np.testing.assert_allclose(got, gradient, atol=1e-8)
    rewards = BETA * (logps - ref)
    np.testing.assert_allclose(
        logged["chosen_rewards"], [rewards[0, 0], rewards[1, :3].mean(), rewards[2, 0], rewards[3, 1]]
    )
    np.testing.assert_allclose(
        logged["rejected_rewards"], [rewards[0, 3], rewards[1, :3].mean(), rewards[2, 1], rewards[3, 3]]
    )
    # If all are tied, there is nothing to learn: everything is 0.
    assert values[1] == 0.0
    assert not np.any(got[1])


@pytest.mark.parametrize("name", ["plackett_luce", "gap_dpo"])
def test_two_responses_are_a_pair_of_dpo(name):
    rng = np.random.default_rng(1)
    logps, ref = jnp.asarray(-rng.uniform(1, 30, (2, 5, 2)), jnp.float32)
    ratings, mask = jnp.tile(jnp.asarray([8.0, 3.0]), (5, 1)), jnp.ones((5, 2), bool)
    values, logged = losses.get(name)(logps, ref, ratings, mask, beta=BETA)
    pair, pair_logged = losses.dpo(logps[:, 0], logps[:, 1], ref[:, 0], ref[:, 1], beta=BETA)
    np.testing.assert_allclose(values, pair, rtol=1e-5)
    for key in pair_logged:
        np.testing.assert_allclose(logged[key], pair_logged[key], rtol=1e-6)
