"""The check of the first step: log-ratios are 0, and the loss is that of equal logps."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from care_jax import losses
from care_jax.training.checks import before_start
from care_jax.training.objective import make_objective
from tests.training.batches import groups, plain_batch


def first_step(loss, value, log_ratio=0.0):
    batch = jax.tree.map(jnp.asarray, plain_batch([groups(2), groups(3, seed=1)], rows=12))
    values = {"loss": value, "logps/chosen": -10.0, "logps/rejected": -11.0}
    before_start.check_first_step(values, log_ratio, "float32", make_objective(loss), batch)


@pytest.mark.parametrize(
    ("loss", "value"),
    [(losses.dpo, math.log(2)), (losses.ipo, 25.0), (functools.partial(losses.kto, desirable_weight=1.0), 0.5)],
)
def test_the_loss_of_equal_logps_is_known(loss, value):
    first_step(loss, value + 1e-5)
    with pytest.raises(before_start.CheckFailed, match="in place of the policy's"):
        first_step(loss, value * 1.05)


def test_log_ratios_are_rounding_only():
    first_step(losses.dpo, math.log(2), 2e-4)
    with pytest.raises(before_start.CheckFailed, match=r"differ from its own reference's by 0\.001 "):
        first_step(losses.dpo, math.log(2), 1e-3)
