"""Metrics of held-out pairs from given log-probabilities."""

import numpy as np
import pytest

from care_jax import losses
from care_jax.data.preferences import make_units
from care_jax.training.evaluation.held_out import by_question, hold_out, measure
from care_jax.training.objective import make_objective
from tests.data.corpora import corpus_of

CORPUS = corpus_of([(3, (2, 4, 5)), (2, (3, 3))])
REFERENCE = np.asarray([-20, -10, -30, -12, -14], np.float32)


def held_out(view):
    options = {"desirable_min": 10.0, "undesirable_max": 8.0} if view == "unpaired" else {}
    pairs = make_units(CORPUS.questions, "pairs", policy="all", unit="group")
    return hold_out(CORPUS, make_units(CORPUS.questions, view, policy="best_worst", **options), pairs, [])


@pytest.mark.parametrize(
    ("loss", "view"), [(losses.dpo, "pairs"), (losses.plackett_luce, "lists"), (losses.nll, "unpaired")]
)
def test_all_pairs_are_measured_whatever_the_view(loss, view):
    """The first question has three pairs, the second one."""
    held = held_out(view)
    changes = {(0, 0): 3.0, (0, 1): 1.0, (0, 2): 2.0, (1, 3): -1.0, (1, 4): 1.0}
    logps = np.asarray([REFERENCE[response] + changes[question, response] for question, response in held.sequences])
    reference = np.asarray([REFERENCE[response] for _, response in held.sequences])
    metrics = measure(make_objective(loss), held, logps, reference)
    assert metrics["eval/logps/chosen"] == pytest.approx((-17 - 17 - 9 - 13) / 4)
    assert metrics["eval/logps/rejected"] == pytest.approx((-9 - 28 - 28 - 13) / 4)
    assert metrics["eval/arab/logps/accuracies"] == metrics["eval/logps/accuracies"]
    assert np.isfinite(metrics["eval/loss"])
    if loss is not losses.nll:  # rewards are log-ratios, whose sign no factor changes
        assert metrics["eval/rewards/accuracies"] == pytest.approx(2 / 4)
        lines = by_question(make_objective(loss), held, logps, reference)
        assert [line["pairs"] for line in lines] == [3, 1]
        assert [line["rewards/accuracies"] for line in lines] == pytest.approx([2 / 3, 0])


def test_no_accuracy_by_rewards_if_the_policy_is_its_reference():
    held = held_out("pairs")
    reference = np.asarray([REFERENCE[response] for _, response in held.sequences])
    metrics = measure(make_objective(losses.dpo), held, reference, reference)
    assert metrics["eval/rewards/accuracies"] is None
    assert metrics["eval/rewards/margins"] == 0
    assert metrics["eval/logps/accuracies"] is not None
    assert metrics["eval/loss"] == pytest.approx(np.log(2))
