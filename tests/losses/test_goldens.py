"""Compares every loss with the peers' own code (tests/make_golden_losses.py), in value and gradient.

Also tests `losses/pairwise.py`, `losses/reference_free.py`, `losses/divergences.py`, `losses/unpaired.py`,
`losses/arithmetic.py`.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax import losses

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "losses"
# No peer has these: tests/losses/test_listwise.py checks them against a plain NumPy loop, and nll is sft's formula.
WITHOUT_PEER = {"plackett_luce", "gap_dpo", "nll"}


def cases(differs):
    for path in sorted(GOLDEN.glob("*.json")):
        for index, case in enumerate(json.loads(path.read_text())):
            if case.get("differs", False) == differs:
                yield pytest.param(case, id=f"{path.stem}-{index}-{case['loss']}")


def ours(case, dtype):
    """(values [P], mean, gradients of the sum, gradients of the mean) of our loss on a case's inputs."""
    loss = losses.get(case["loss"])
    inputs = {k: np.asarray(v) for k, v in case["inputs"].items()}
    if "kl_logps" in inputs:
        inputs["kl"] = np.mean(inputs.pop("kl_logps") - inputs.pop("ref_kl_logps"))
    inputs = {k: v if v.dtype == bool or "lengths" in k else v.astype(dtype) for k, v in inputs.items()}
    inputs = {k: jnp.asarray(v) for k, v in inputs.items() if k in losses.spec(loss).needs}
    leaves = {k: v for k, v in inputs.items() if k.endswith("logps")}
    rest = {k: v for k, v in inputs.items() if k not in leaves}

    def both(leaves):
        values, aux = loss(**leaves, **rest, **case["hyperparameters"])
        weights = aux.get("weights", jnp.ones_like(values))
        return (jnp.sum(values), jnp.sum(weights * values) / jnp.sum(weights)), values

    # Not jitted: the operations of one shape are compiled once for all losses.
    (_, mean), back, values = jax.vjp(both, leaves, has_aux=True)
    return values, mean, back((jnp.ones(()), jnp.zeros(())))[0], back((jnp.zeros(()), jnp.ones(())))[0]


@pytest.mark.parametrize("case", list(cases(differs=False)))
def test_equals_the_peer(case):
    with jax.enable_x64(True):
        values, mean, gradients, mean_gradients = ours(case, np.float64)
    # Float32 inside: TRL's exponent of the alpha divergence, odds of ORPO, label smoothing of EXO, and HALOs' z0.
    exact = case["loss"] not in ("dpo_alpha", "orpo", "exo_pair") and not (
        case["loss"] == "kto" and case["peer"].startswith("HALOs")
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10 if exact else 2e-5, atol=1e-11 if exact else 2e-6)
    if "losses" in case:
        close(values, case["losses"])
    else:
        close(mean, case["mean"])
        gradients = mean_gradients
    for name, expected in case["gradients"].items():
        if name in gradients:
            close(gradients[name], expected, err_msg=name)
        else:
            assert not np.any(expected)


@pytest.mark.parametrize("case", list(cases(differs=True)))
def test_where_a_peer_differs_from_the_paper(case):
    """Checks the peer's number and ours ("Peers:" in the docstring explains the difference)."""
    with jax.enable_x64(True):
        values, mean, _, _ = ours(case, np.float64)
        inputs = {k: np.asarray(v) for k, v in case["inputs"].items()}
        if case["loss"] == "ipo":
            # HALOs: nan where policy equals reference; the paper: (0 - 1/(2 tau))^2.
            assert case["losses"] == ["nan"]
            np.testing.assert_allclose(values, [25.0])
        elif case["loss"] == "dpo":
            # TRL: label smoothing is ignored on `sigmoid`, its numbers are those without it.
            assert case["hyperparameters"] == {"label_smoothing": 0.1}
            names = losses.spec(losses.dpo).needs
            plain, _ = losses.dpo(**{k: jnp.asarray(inputs[k]) for k in names})
            np.testing.assert_allclose(case["losses"], plain, rtol=1e-10)
            assert np.max(np.abs(values - np.asarray(case["losses"]))) > 0.1
        else:
            # TRL: the NLL is a mean over the microbatch's tokens (ORPO: also the prompt's), ours a mean for each pair.
            assert abs(mean - case["mean"]) > 1e-3
            per_pair = inputs["chosen_logps"] / inputs["chosen_lengths"]
            total, count = np.sum(inputs["chosen_logps"]), np.sum(inputs["chosen_lengths"])
            weight = case["hyperparameters"].get("cpo_alpha", 1.0)
            if case["loss"] == "orpo":
                # The first token of a sequence has no log-probability.
                prompt_tokens = len(per_pair) * (case["peer_options"]["prompt_tokens"] - 1)
                total, count = total + prompt_tokens * case["prompt_logp"], count + prompt_tokens
            theirs = mean + weight * np.mean(per_pair) - weight * total / count
            np.testing.assert_allclose(theirs, case["mean"], rtol=1e-6)


def test_a_list_with_sft_is_trls_cpo():
    """As the docstring of cpo says: cpo_alpha 0 and sft, as two losses, give TRL's number exactly."""
    case = next(p.values[0] for p in cases(differs=True) if p.values[0]["loss"] == "cpo")
    with jax.enable_x64(True):
        _, without, _, _ = ours(case | {"hyperparameters": case["hyperparameters"] | {"cpo_alpha": 0.0}}, np.float64)
        _, token_mean, _, _ = ours(case | {"loss": "sft", "hyperparameters": {}}, np.float64)
        np.testing.assert_allclose(without + token_mean, case["mean"], rtol=1e-10)


def test_every_loss_has_a_golden():
    seen = {p.values[0]["loss"] for p in cases(differs=False)}
    assert seen == set(losses.names()) - WITHOUT_PEER
