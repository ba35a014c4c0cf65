"""The decoder as a Flax module, its options for memory, and attention against a loop in NumPy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import care_jax.models as models
from care_jax import sharding
from care_jax.models import attention
from care_jax.plan import flops
from tests.models.tiny_models import GOLDEN, tiny_model


def test_flax_users_find_what_they_expect():
    tiny = tiny_model("qwen2")
    tokens = jnp.ones((1, 4), jnp.int32)
    shapes = jax.eval_shape(tiny.model.init, jax.random.key(0), tokens)
    assert jax.tree.map(lambda x: x.shape, shapes["params"]) == jax.tree.map(lambda x: x.shape, tiny.params)
    assert type(shapes["params"]) is dict
    assert "blocks" in nn.tabulate(tiny.model, jax.random.key(0))(tokens)


def test_a_fresh_model_is_the_same_on_every_mesh():
    model = models.from_config(GOLDEN / "llama3")
    alone = models.init_params(model, 3)
    placed = models.init_params(model, 3, sharding.make_mesh(2, 2, 2))
    jax.tree.map(np.testing.assert_array_equal, alone, placed)
    mlp = alone["blocks"]["mlp"]
    assert not np.array_equal(mlp["up"]["weight"], mlp["gate"]["weight"])
    np.testing.assert_allclose(np.std(np.asarray(alone["blocks"]["mlp"]["up"]["weight"])), 0.02, rtol=0.1)
    assert (np.asarray(alone["norm"]["weight"]) == 1).all()
    gemma = models.init_params(models.from_config(GOLDEN / "gemma2"), 0, param_dtype="bfloat16")
    assert gemma["norm"]["weight"].dtype == jnp.bfloat16
    assert (np.asarray(gemma["norm"]["weight"], np.float32) == 0).all()


def test_positions_and_segments_have_defaults():
    tiny = tiny_model("gemma3_text")
    tokens = jnp.asarray(tiny.golden["tokens"])

    @jax.jit
    def both(params):
        apply = functools.partial(tiny.model.apply, {"params": params}, tokens)
        return apply(), apply(method="hidden")

    logits, hidden = both(tiny.params)
    np.testing.assert_allclose(logits[0], tiny.golden["logits"][0], atol=1e-4)
    head = models.head_weight(tiny.model.arch, tiny.params)
    np.testing.assert_allclose(hidden @ head.T, logits, atol=1e-4)


def test_remat_computes_again_what_it_says():
    """Counts the matrix products of a gradient: full has those of one more forward pass, except the last (down);
    with dots none of the projections.
    """
    tiny = tiny_model("qwen2")
    tokens = jnp.asarray(tiny.golden["tokens"])[:1, :8]

    def operations(remat):
        model = dataclasses.replace(tiny.model, remat=remat)

        def total(params):
            return jnp.sum(model.apply({"params": params}, tokens, method="hidden"))

        return flops.count(jax.make_jaxpr(jax.grad(total))(tiny.params))

    none, dots, full = (operations(remat) for remat in ("none", "dots", "full"))
    forward = flops.count(
        jax.make_jaxpr(lambda params: tiny.model.apply({"params": params}, tokens, method="hidden"))(tiny.params)
    )
    blocks = tiny.params["blocks"]
    weights = sum(one["weight"].size for part in (blocks["attn"], blocks["mlp"]) for one in part.values())
    assert full - none == forward - 2 * blocks["mlp"]["down"]["weight"].size * tokens.size
    assert dots - none == forward - 2 * weights * tokens.size  # attention's own products


def test_remat_changes_no_number():
    tiny = tiny_model("qwen2")
    tokens = jnp.asarray(tiny.golden["tokens"])[:1, :8]

    def numbers(remat, params):
        model = dataclasses.replace(tiny.model, remat=remat)

        def loss(params):
            hidden = model.apply({"params": params}, tokens, method="hidden")
            return jnp.sum(jnp.sin(hidden)), hidden

        (_, hidden), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return hidden, gradient

    remats = ("none", "dots", "full")
    results = jax.jit(lambda params: {remat: numbers(remat, params) for remat in remats})(tiny.params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    for remat in ("dots", "full"):
        jax.tree.map(close, results[remat], results["none"])
    assert np.abs(results["none"][1]["blocks"]["mlp"]["up"]["weight"]).max() > 1e-3


def test_chunks_of_queries_change_no_number(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 16)  # 40 tokens: two chunks and a part of one
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 40, heads, 4)), jnp.float32) for heads in (4, 2, 2))
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0]], [9, 12, 12, 7], axis=1).repeat(2, 0), jnp.int32)
    prompts = jnp.where(segments == 3, 1, segments)
    positions = jnp.asarray(np.concatenate([np.arange(9), np.arange(12), 9 + np.arange(12), np.arange(7)]), jnp.int32)
    positions = jnp.broadcast_to(positions[None], segments.shape)

    @functools.partial(jax.jit, static_argnames="implementation")
    def numbers(implementation, *qkv):
        def loss(*qkv):
            out = attention.attend(
                *qkv,
                positions=positions,
                segment_ids=segments,
                prompt_segment_ids=prompts,
                window=5,
                soft_cap=3.0,
                scale=0.5,
                implementation=implementation,
            )
            return jnp.sum(jnp.sin(3.0 * out)), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*qkv)
        return out, *gradients

    whole, chunked = numbers("xla", q, k, v), numbers("xla_chunked", q, k, v)
    for one, other in zip(whole, chunked, strict=True):
        assert np.abs(one).max() > 0.1
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_attention_equals_a_loop_over_queries():
    """The definition, in NumPy: segments, prompts, window and cap together."""
    rng = np.random.default_rng(0)
    length, window, cap = 12, 4, 3.0
    q, k, v = (rng.normal(size=(1, length, heads, 4)).astype(np.float32) for heads in (4, 2, 2))
    segments = np.repeat([1, 2, 3, 0], [4, 3, 3, 2])
    prompts = np.where(segments == 3, 1, segments)
    positions = np.concatenate([np.arange(4), np.arange(3), 4 + np.arange(3), np.arange(2)])
    expected = np.zeros_like(q)
    for head in range(4):
        for i in range(length):
            seen = [
                j
                for j in range(i + 1)
                if segments[j] in (segments[i], prompts[i]) and positions[i] - positions[j] < window
            ]
            scores = cap * np.tanh(q[0, i, head] @ k[0, seen, head // 2].T * 0.5 / cap)
            weights = np.exp(scores) / np.exp(scores).sum()
            expected[0, i, head] = weights @ v[0, seen, head // 2]
    batched = [jnp.asarray(x[None], jnp.int32) for x in (positions, segments, prompts)]
    static = ("window", "soft_cap", "scale", "implementation")
    ours = jax.jit(attention.attend, static_argnames=static)(
        *map(jnp.asarray, (q, k, v)),
        positions=batched[0],
        segment_ids=batched[1],
        prompt_segment_ids=batched[2],
        window=window,
        soft_cap=cap,
        scale=0.5,
        implementation="xla",
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5)
