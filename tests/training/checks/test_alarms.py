"""Alarms: each is given once while its cause lasts, none while training goes well."""

import dataclasses

import numpy as np
import pytest

from care_jax.training.checks.alarms import WINDOW, Alarms, mean_chosen_tokens, truncation_alarm
from tests.training.batches import groups, plain_batch

GOOD = {"loss": 0.5, "rewards/chosen": 0.2, "rewards/rejected": -0.3, "rewards/accuracies": 0.8, "logps/chosen": -80.0}


def alarms_of(*phases):
    """Returns the alarms over phases of 3 windows each; a phase maps the step within it to the values that differ."""
    alarms, texts = Alarms(), []
    for phase in phases:
        for step in range(3 * WINDOW):
            texts += alarms.check(step, GOOD | phase(step), 40.0)
    return texts


def test_silence_while_all_is_well():
    assert alarms_of(lambda step: {}) == []


def test_both_rewards_fall():
    falling = lambda step: {"rewards/chosen": -0.1 * step, "rewards/rejected": -0.3 * step}  # noqa: E731
    (text,) = alarms_of(falling)
    assert "both rewards fall together" in text
    assert len(alarms_of(falling, lambda step: {}, falling)) == 2, "again when it comes back"
    assert alarms_of(lambda step: {"rewards/chosen": 0.1 * step, "rewards/rejected": -0.3 * step}) == []


def test_the_chosen_logp_collapses():
    (text,) = alarms_of(lambda step: {}, lambda step: {"logps/chosen": -200.0})
    assert "from -2.00 to -3.20" in text


def test_nothing_left_to_learn():
    (text,) = alarms_of(lambda step: {"loss": 1e-5, "rewards/accuracies": 1.0})
    assert "accuracy 1 and loss 0" in text


def test_truncation_above_a_twentieth():
    assert "6 of 100 completions (6.0%)" in truncation_alarm(6, 100, 512)
    assert truncation_alarm(5, 100, 512) is None
    assert truncation_alarm(0, 0, 512) is None


def test_tokens_of_the_chosen():
    batch = dataclasses.replace(
        plain_batch([groups(1)]),
        lengths=np.array([[4, 6, 1], [8, 1, 1]]),
        pairs=np.array([[[0, 1], [1, 0]], [[0, 1], [0, 0]]]),
        pair_weights=np.array([[1.0, 1.0], [1.0, 0.0]]),
        response_weights=np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        desirable=np.array([[True, False, False], [True, False, False]]),
    )
    assert mean_chosen_tokens("pairs", batch) == pytest.approx(6)
    assert mean_chosen_tokens("unpaired", batch) == pytest.approx(6)
    assert np.isnan(mean_chosen_tokens("lists", batch))
