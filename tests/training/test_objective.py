"""Quantities of a batch by view, and rewards of pairs whatever the view of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax import losses
from care_jax.losses.signature import QUANTITIES
from care_jax.training import objective as objectives
from care_jax.training.step import microbatch_of
from tests.training.batches import groups, plain_batch

BATCH = microbatch_of(jax.tree.map(jnp.asarray, plain_batch([groups(2)])), 0)
LOGPS = jnp.linspace(-9.0, -2.0, len(BATCH.lengths))


@pytest.mark.parametrize("view", QUANTITIES)
def test_a_batch_has_every_quantity_that_a_loss_may_name(view):
    assert set(objectives.gather_quantities(view, LOGPS, BATCH, jnp.zeros(()))) == set(QUANTITIES[view])


@pytest.mark.parametrize(("name", "factor"), [("dpo", 0.5), ("kto", 0.5), ("plackett_luce", 1.0)])
def test_pairs_have_the_rewards_that_the_loss_returns(name, factor):
    """DPO and KTO reward a response by beta times its log-ratio; plackett_luce, whose rewards are of a list, has the
    default.
    """
    objective = objectives.make_objective(losses.bind(name, beta=0.5))
    chosen, rejected = objectives.pair_rewards(objective, LOGPS, BATCH, jnp.zeros(()))
    rewards = factor * (LOGPS - BATCH.ref_logps)
    real = np.flatnonzero(BATCH.pair_weights)
    for side, found in enumerate((chosen, rejected)):
        np.testing.assert_allclose(found[real], rewards[BATCH.pairs[:, side]][real], rtol=1e-6)


@pytest.mark.parametrize(("name", "per_token"), [("dpo_without_rewards", False), ("sft", True)])
def test_pairs_have_default_rewards(name, per_token):
    def dpo_without_rewards(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
        return rejected_logps - chosen_logps + ref_chosen_logps - ref_rejected_logps, {}

    loss = losses.sft if name == "sft" else dpo_without_rewards
    chosen, _ = objectives.pair_rewards(objectives.make_objective(loss), LOGPS, BATCH, None)
    rewards = LOGPS / BATCH.lengths if per_token else LOGPS - BATCH.ref_logps
    np.testing.assert_allclose(chosen, rewards[BATCH.pairs[:, 0]], rtol=1e-6)


def test_units_of_a_merged_batch_are_selected_in_order():
    merged = objectives.merge_microbatches(jax.tree.map(jnp.asarray, plain_batch([groups(1), groups(1, seed=2), []])))
    units, indices = objectives.select_units("pairs", merged, 6)
    assert indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.all(units.pair_weights == 1)
    assert int(units.pairs.max()) > 12, "slots of the second microbatch follow those of the first"
