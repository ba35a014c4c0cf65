"""check_loss passes sound losses and reports everything that is wrong with others, with the numbers."""

import functools

import jax
import jax.numpy as jnp
import pytest

from care_jax import losses
from care_jax.errors import UserError
from care_jax.testing import UnsoundLoss, check_loss
from tests.losses.test_properties import NOT_MONOTONE


@pytest.mark.parametrize("name", ["dpo", "sft", "kto", "aot_unpaired"])
def test_sound_losses_pass(name):
    report = check_loss(losses.get(name))
    assert report.name == name
    assert report.failures == report.skipped == ()
    assert any("finite" in check for check in report.passed)


def failures(loss, **options):
    with pytest.raises(UnsoundLoss) as raised:
        check_loss(loss, **options)
    assert all(line in str(raised.value) for line in raised.value.failures)
    return raised.value.failures


def test_a_loss_may_be_declared_not_monotone():
    (*lines,) = failures(losses.ipo)
    assert all(line.startswith("monotone: raising chosen_logps by") for line in lines)
    assert check_loss(losses.ipo, monotone=False).skipped


def test_hyperparameters_come_with_partial():
    assert "beta must be above 0, found -1" in failures(functools.partial(losses.dpo, beta=-1.0))[0]


def test_all_failures_are_reported_at_once():
    def careless(chosen_logps, rejected_logps, *, beta=0.1):
        ratio = jnp.exp(beta * (chosen_logps - rejected_logps))
        return (-jnp.log(ratio / (1.0 + ratio)) - jnp.mean(chosen_logps)).astype(jnp.bfloat16), {
            "weights": chosen_logps,
            "reward": jnp.mean(chosen_logps),
        }

    text = "\n".join(failures(careless))
    assert "dtype: losses are bfloat16, expected float32" in text
    assert "shape: 'reward' of the dict is ()" in text
    assert "weights: they change with the policy's logps" in text
    assert "finite value: " in text
    assert "chosen_logps = -100000.0, rejected_logps = " in text
    assert "finite gradient by rejected_logps: nan" in text
    assert "a subset of the units: " in text
    assert "@losses.whole_step" in text
    assert "a cast inside" in text


def test_a_wrong_gradient_is_found():
    @jax.custom_vjp
    def doubled(x):
        return x

    doubled.defvjp(lambda x: (x, None), lambda _, g: (2.0 * g,))

    def wrong(chosen_logps, rejected_logps):
        return jax.nn.softplus(rejected_logps - doubled(chosen_logps)), {}

    (line,) = failures(wrong)
    assert line.startswith("gradient by chosen_logps, against finite differences: -")


def test_a_loss_that_cannot_be_traced_is_one_failure():
    def branches(chosen_logps, rejected_logps):
        margin = chosen_logps - rejected_logps
        return jax.nn.softplus(-margin) if float(margin[0]) < 1e9 else margin, {}

    lines = failures(branches)
    assert any("jit, vmap" in line and "raised ConcretizationTypeError" in line for line in lines)


def test_a_function_that_is_not_a_loss_is_a_user_error():
    with pytest.raises(UserError, match="did you mean 'chosen_logps'"):
        check_loss(lambda chosen_logp: (chosen_logp, {}))


@pytest.mark.slow  # tests/losses checks the properties of all losses without --slow
@pytest.mark.parametrize("name", losses.names())
def test_every_built_in_passes(name):
    assert not check_loss(losses.get(name), monotone=name not in NOT_MONOTONE).failures
