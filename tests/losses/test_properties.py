"""Properties of every loss in the registry: a new loss is covered at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax import losses, testing

# Raising a chosen logp may raise these: squares and reverse KL overshoot, smoothing pulls back, apo_down lowers both.
NOT_MONOTONE = {"ipo", "sppo_hard", "nca_pair", "exo_pair", "apo_down", "discopop"}
# Names of the policy's logps that are better raised.
CHOSEN = ("chosen_logps", "logps")

few = settings(max_examples=4, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
every_loss = pytest.mark.parametrize("name", losses.names())


def wild(known, seed):
    """Returns quantities of testing.UNITS units, with logps of every size from -1e5 to 0, both ends included."""
    rng = np.random.default_rng(seed)
    quantities = testing.example(known, seed=seed)
    for name in known.needs:
        if name.endswith("logps"):
            size = -(10.0 ** rng.uniform(-9, 5, quantities[name].shape))
            ends = rng.choice([-1e5, 0.0], quantities[name].shape)
            quantities[name] = np.where(rng.random(size.shape) < 0.2, ends, size).astype(np.float32)
    if "kl" in quantities:
        quantities["kl"] = np.float32(rng.choice([0.0, 3.0, 1e5]))
    return quantities


@functools.cache
def compiled(name):
    """(losses, logged, gradients of their sum by the policy's logps) in one program, compiled once per loss."""

    def run(leaves, rest):
        def total(leaves):
            values, logged = losses.get(name)(**leaves, **rest)
            return jnp.sum(values), (values, logged)

        gradients, (values, logged) = jax.grad(total, has_aux=True)(leaves)
        return values, logged, gradients

    return jax.jit(run)


def evaluate(name, quantities):
    leaves = {k: np.asarray(v) for k, v in quantities.items() if k in testing.POLICY}
    rest = {k: np.asarray(v) for k, v in quantities.items() if k not in testing.POLICY}
    return jax.tree.map(np.asarray, compiled(name)(leaves, rest))


@every_loss
@few
@given(seed=seeds)
def test_one_finite_float32_per_unit_wherever_the_logps_are(name, seed):
    loss = losses.get(name)
    known = losses.spec(loss)
    values, logged, gradients = evaluate(name, wild(known, seed))
    assert values.shape == (testing.UNITS,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    for key, gradient in gradients.items():
        assert np.isfinite(gradient).all(), key
    for key, value in logged.items():
        assert value.shape == (testing.UNITS,), key
        assert value.dtype == np.float32, key
        assert np.isfinite(value).all(), key


@every_loss
@few
@given(seed=seeds)
def test_units_are_independent_unless_the_loss_is_of_a_whole_step(name, seed):
    loss = losses.get(name)
    known = losses.spec(loss)
    quantities = wild(known, seed)
    values, logged, _ = evaluate(name, quantities)
    order = np.random.default_rng(seed).permutation(testing.UNITS)
    moved = {k: v if k == "kl" else v[order] for k, v in quantities.items()}
    again, logged_again, _ = evaluate(name, moved)
    if known.whole_step:
        # Sums over the step stay the same; single losses may move to other units.
        np.testing.assert_allclose(np.sort(again), np.sort(values), rtol=1e-6)
        return
    np.testing.assert_array_equal(again, values[order])
    for key, value in logged_again.items():
        np.testing.assert_array_equal(value, logged[key][order], err_msg=key)
    # Other values of other units do not change a unit's loss: this tests subsets without compiling a new shape.
    kept = np.arange(testing.UNITS) % 3 == 0
    other = wild(known, seed + 1)
    mixed = {
        k: v if k == "kl" else np.where(kept.reshape(-1, *[1] * (v.ndim - 1)), v, other[k])
        for k, v in quantities.items()
    }
    np.testing.assert_array_equal(evaluate(name, mixed)[0][kept], values[kept])


@every_loss
@few
@given(seed=seeds, step=st.floats(1e-3, 300.0))
def test_raising_what_is_chosen_never_raises_the_loss(name, seed, step):
    loss = losses.get(name)
    known = losses.spec(loss)
    key = next((k for k in CHOSEN if k in known.needs), None)
    if key is None or name in NOT_MONOTONE:
        return
    low = testing.example(known, seed=seed)
    low[key] = low[key] - np.float32(300.0)
    before, _, gradients = evaluate(name, low)
    raised = low[key] + np.float32(step) * low.get("desirable", True)
    after, _, _ = evaluate(name, low | {key: raised.astype(np.float32)})
    if known.whole_step:
        before, after = before.sum(), after.sum()
    assert np.all(after <= before + 1e-5 * (1.0 + np.abs(before)))
    chosen = low.get("desirable", np.ones(testing.UNITS, bool))
    assert np.all(gradients[key][chosen] <= 0.0)


@every_loss
def test_the_reward_of_the_chosen_rises_with_its_logp(name):
    loss = losses.get(name)
    known = losses.spec(loss)
    low = testing.example(known, seed=1)
    reward = {"chosen_logps": "chosen_rewards", "logps": "rewards"}.get(
        next(k for k in known.needs if k.endswith("logps"))
    )
    if reward is None or name == "sft":
        return
    key = "chosen_logps" if reward == "chosen_rewards" else "logps"
    before = evaluate(name, low)[1][reward]
    after = evaluate(name, {k: v + np.float32(1.0) if k == key else v for k, v in low.items()})[1][reward]
    assert np.all(after > before)


@every_loss
def test_signature_is_the_registration(name):
    loss = losses.get(name)
    known = losses.spec(loss)
    assert known.name == name
    assert known.needs_ref == any("ref_" in quantity or quantity == "kl" for quantity in known.needs)
    assert all(isinstance(default, kind) for kind, default in known.hyperparameters.values())
    bound = losses.bind(name, **{key: default for key, (_, default) in known.hyperparameters.items()})
    assert losses.spec(bound) == known
    for section in ("Formula:", "Shapes:", "Paper:", "Peers:"):
        assert section in loss.__doc__


@every_loss
def test_hyperparameters_may_be_traced(name):
    """For a sweep of beta under vmap, or its gradient: Python code never needs the value."""
    loss = losses.get(name)
    known = losses.spec(loss)
    given = {key: jnp.float32(default) for key, (_, default) in known.hyperparameters.items()}
    shape = jax.eval_shape(lambda given, quantities: loss(**quantities, **given)[0], given, testing.example(known))
    assert (shape.shape, shape.dtype) == ((testing.UNITS,), jnp.float32)


def test_an_alpha_of_1_is_dpo():
    quantities = testing.example(losses.spec(losses.dpo))
    np.testing.assert_array_equal(losses.dpo_alpha(**quantities, alpha=1.0)[0], losses.dpo(**quantities)[0])


@pytest.mark.parametrize("name", [n for n in losses.names() if losses.spec(losses.get(n)).needs_ref and n != "kto"])
def test_policy_equal_to_reference_gives_the_known_loss(name):
    """The loss of the first step, computed by hand: what a run should log at step 1."""
    loss = losses.get(name)
    known = losses.spec(loss)
    quantities = testing.example(known, seed=2)
    for key in known.needs:
        if "ref_" in key:
            quantities[key] = quantities[key.replace("ref_", "")]
    values = evaluate(name, quantities)[0]
    log2 = np.log(2.0)
    at_start = {
        "ipo": 25.0,
        "hinge": 1.0,
        "exo_pair": -log2 - 0.5 * (np.log1p(-1e-3) + np.log(1e-3)),
        "nca_pair": 2 * log2,
        "bco_pair": 2 * log2,
        "sppo_hard": 50.0,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "discopop": 0.5 * log2 + 0.5,
    }
    if known.view == "pairs":
        np.testing.assert_allclose(values, at_start.get(name, log2), rtol=1e-5)
