"""The step computes sum(w l) / sum(w) over the whole step, whatever the microbatches and the mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from care_jax import losses
from care_jax.training.step import init_state, make_logps, make_step, response_logps
from tests.training.batches import groups, plain_batch, tiny_model

ONE_OF_EACH_VIEW = ["dpo", "simpo", "kto", "plackett_luce", "aot"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


# Moves nothing, and keeps the gradient as it came.
KEEP_GRADIENT = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda gradient, state, params=None: (jax.tree.map(jnp.zeros_like, gradient), gradient),
)


def gradient_step(model, loss, params, batch, **options):
    """The metrics and the gradient of one step."""
    state = init_state(params, KEEP_GRADIENT)
    after, metrics = jax.jit(make_step(model, loss, KEEP_GRADIENT, **options))(state, batch)
    return metrics, after.opt_state


def with_mismatched(batch, name):
    if name != "kto":
        return batch
    return dataclasses.replace(
        batch, mismatched=dataclasses.replace(batch, ref_logps=batch.ref_logps - 40 * batch.response_weights)
    )


def close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * (float(jnp.max(jnp.abs(y))) + 1e-3))


def same_metrics(found, expected):
    close(found["loss"], expected["loss"])
    for name, value in expected.items():  # a margin is a small difference of large numbers
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-4, err_msg=name)


def test_logps_are_those_of_a_full_log_softmax(tiny):
    model, params = tiny
    batch = plain_batch([groups(2)])
    found = jax.jit(make_logps(model))({"params": params}, batch)[0]
    full = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)))(batch.tokens[0])
    for slot, (prompt, completion) in enumerate((g.prompt, c) for g in groups(2) for c in g.completions):
        logp = full[slot]
        expected = sum(logp[len(prompt) + i - 1, token] for i, token in enumerate(completion))
        np.testing.assert_allclose(found[slot], expected, rtol=1e-5)
    assert not np.any(found[6:])


def test_dpo_is_the_mean_over_pairs(tiny):
    model, params = tiny
    batch = plain_batch([groups(3)])
    metrics, gradient = gradient_step(model, losses.dpo, params, batch)

    def plain(params):
        one = jax.tree.map(lambda x: jnp.asarray(x[0]), dataclasses.replace(batch, n_microbatches=None))
        logps = response_logps(model, {"params": params}, one)
        ratios = logps - one.ref_logps
        margins = ratios[one.pairs[:, 0]] - ratios[one.pairs[:, 1]]
        return -jnp.mean(jax.nn.log_sigmoid(0.1 * margins)), margins

    (value, margins), expected = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/margins"], 0.1 * jnp.mean(margins), rtol=1e-4)
    np.testing.assert_allclose(metrics["rewards/accuracies"], jnp.mean(margins > 0), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(expected), rtol=1e-5)
    close(gradient, expected)


@pytest.mark.parametrize("name", ONE_OF_EACH_VIEW)
def test_accumulation_changes_nothing(tiny, name):
    """One microbatch without a loop, and one, two, four of them in one compiled loop whose bound is traced."""
    model, params = tiny
    whole = groups(4)
    step = jax.jit(make_step(model, losses.get(name), KEEP_GRADIENT, examples=12 if name == "aot" else None))

    def run(parts):
        batch = with_mismatched(plain_batch(parts), name)
        after, metrics = step(init_state(params, KEEP_GRADIENT), batch)
        return metrics, after.opt_state

    metrics, gradient = run([whole])
    for parts in ([whole, [], [], []], [whole[:2], whole[2:], [], []], [[group] for group in whole]):
        found, found_gradient = run(parts)
        same_metrics(found, metrics)
        close(found_gradient, gradient)


def test_microbatches_that_hold_nothing_are_not_run(tiny):
    model, params = tiny
    batch = plain_batch([groups(2), groups(2, seed=1), []])
    spoiled = dataclasses.replace(batch, tokens=np.where(np.arange(3)[:, None, None] < 2, batch.tokens, -(10**6)))
    step = jax.jit(make_step(model, losses.dpo, KEEP_GRADIENT))
    after, metrics = step(init_state(params, KEEP_GRADIENT), batch)
    same, same_metrics = step(init_state(params, KEEP_GRADIENT), spoiled)
    jax.tree.map(np.testing.assert_array_equal, (after, metrics), (same, same_metrics))


def test_losses_of_one_list_share_the_pass_and_their_own_weights(tiny):
    model, params = tiny
    batch = plain_batch([groups(2), groups(2, seed=3)])
    dpo, dpo_gradient = gradient_step(model, losses.dpo, params, batch)
    sft, sft_gradient = gradient_step(model, losses.sft, params, batch)
    both, both_gradient = gradient_step(model, [(losses.dpo, 1.0), (losses.sft, 0.5)], params, batch)
    np.testing.assert_allclose(both["loss"], dpo["loss"] + 0.5 * sft["loss"], rtol=1e-5)
    close(both_gradient, jax.tree.map(lambda a, b: a + 0.5 * b, dpo_gradient, sft_gradient))


def test_a_loss_that_is_not_finite_changes_no_weight(tiny):
    model, params = tiny
    batch = plain_batch([groups(2)])
    spoiled = dataclasses.replace(batch, ref_logps=batch.ref_logps * np.nan)
    state = init_state(params, optax.adam(1e-2))
    step = jax.jit(make_step(model, losses.dpo, optax.adam(1e-2)))
    after, metrics = step(state, spoiled)
    assert int(metrics["skipped"]) == 1
    assert int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    after, metrics = step(after, batch)
    assert int(metrics["skipped"]) == 0


def test_views_do_not_mix(tiny):
    model, _ = tiny
    with pytest.raises(ValueError, match="same view"):
        make_step(model, [losses.dpo, losses.kto], optax.sgd(1.0))
