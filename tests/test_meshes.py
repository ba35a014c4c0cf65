"""One device and eight give the same loss and gradient, whatever the mesh, the loss, the model and the microbatches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from care_jax import losses
from care_jax.config import OptimizerConfig
from care_jax.models import lora
from care_jax.sharding import make_mesh
from care_jax.training import placement
from care_jax.training.optimizer import make_optimizer, make_schedule
from care_jax.training.state import ModelAndOptimizer, state_shardings
from care_jax.training.step import init_state, make_step
from tests.training.batches import groups, plain_batch, tiny_model
from tests.training.test_step import KEEP_GRADIENT, close, same_metrics, with_mismatched

MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
LOSSES = ("dpo", "kto", "simpo", "plackett_luce", "aot")
GEMMA2 = {
    "model_type": "gemma2",
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "hidden_activation": "gelu_pytorch_tanh",
}
ROWS, RANK = 16, 4


def cases():
    """mesh x loss x (adapters, microbatches, tied, Gemma 2): all; without --slow a few, each value in one of them."""
    plain = {
        ((8, 1, 1), "kto", True, 4, False, False),
        ((1, 8, 1), "dpo", False, 4, True, True),
        ((1, 1, 8), "plackett_luce", False, 1, False, False),
        ((2, 2, 2), "simpo", True, 1, True, False),
    }
    for case in itertools.product(MESHES, LOSSES, (False, True), (1, 4), (False, True), (False, True)):
        mesh, loss, adapted, count, tied, gemma = case
        shown = ("x".join(map(str, mesh)), loss, "lora" if adapted else "full", f"{count}microbatches")
        name = "-".join((*shown, "tied" if tied else "untied", "gemma2" if gemma else "llama"))
        yield pytest.param(*case, id=name, marks=[] if case in plain else pytest.mark.slow)


@pytest.mark.parametrize(("sizes", "name", "adapted", "count", "tied", "gemma"), list(cases()))
def test_any_mesh_gives_the_same_loss_and_gradient(tmp_path, sizes, name, adapted, count, tied, gemma):
    model, params = tiny_model(
        tmp_path,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=tied,
        **(GEMMA2 if gemma else {}),
    )
    adapters = where = None
    mesh = make_mesh(*sizes)
    if adapted:
        model = lora.attach(model, RANK, 8.0)
        fresh = lora.init(model, RANK)
        rng = np.random.default_rng(0)
        adapters = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape, np.float32), fresh)
        where = lora.shardings(model.arch, RANK, "all", mesh)
    whole = groups(4, seed=5)
    parts = [whole] if count == 1 else [[one] for one in whole]
    batch = with_mismatched(plain_batch(parts, rows=ROWS), name)
    step = make_step(model, losses.get(name), KEEP_GRADIENT, examples=12 if name == "aot" else None)
    state = init_state(params, KEEP_GRADIENT, adapters)
    alone, metrics = jax.jit(step)(state, batch)
    after, found = on_mesh(mesh, step, state, batch, model, KEEP_GRADIENT, where)
    same_metrics(jax.device_get(found), jax.device_get(metrics))
    close(jax.device_get(after.opt_state), jax.device_get(alone.opt_state))


def on_mesh(mesh, step, state, batch, model, optimizer, adapters=None):
    """The state and the metrics after one step. adapters: their shardings."""
    with jax.set_mesh(mesh):
        trained = ModelAndOptimizer(model, optimizer, optax.constant_schedule(0.0), adapters)
        shardings = state_shardings(state, trained, mesh)
        placed = placement.batch_shardings(batch, mesh)
        jitted = jax.jit(step, in_shardings=(shardings, placed), out_shardings=(shardings, None))
        return jitted(jax.device_put(state, shardings), placement.to_devices(batch, placed, ROWS))


def test_factored_moments_and_sums_in_bfloat16_are_sharded_and_give_the_same_update(tmp_path):
    model, params = tiny_model(tmp_path, hidden_size=128, intermediate_size=256, num_attention_heads=4)
    config = OptimizerConfig(name="adafactor", learning_rate=1e-2, warmup=0, schedule="constant")
    rule = make_optimizer(config, make_schedule(config, 1))
    batch = plain_batch([[one] for one in groups(4, seed=5)], rows=ROWS)
    state = init_state(params, rule)
    mesh = make_mesh(2, 2, 2)
    unrounded, step = (
        make_step(model, losses.get("dpo"), rule, accumulate_dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)
    )
    before, _ = on_mesh(mesh, unrounded, state, batch, model, rule)
    after, metrics = on_mesh(mesh, step, state, batch, model, rule)
    alone, expected = jax.jit(step)(state, batch)
    same_metrics(jax.device_get(metrics) | {"grad_norm": 0}, jax.device_get(expected) | {"grad_norm": 0})
    np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-3)
    exact, rounded = (
        [x for name in ("v_row", "v_col") for x in jax.tree.leaves(optax.tree_utils.tree_get(one.opt_state, name))]
        for one in (before, after)
    )
    factored = [x for x in rounded if x.ndim > 1]
    assert len(factored) == 2 * 3, "gate, up and down are large enough"
    assert not any(x.sharding.is_fully_replicated for x in factored)
    for one, other, start in zip(*(jax.tree.leaves(x.params) for x in (after, alone, state))):
        moved = float(jnp.max(jnp.abs(other - start)))
        assert moved > 0
        np.testing.assert_allclose(one, other, rtol=0, atol=0.02 * moved)
    assert any(np.any(x != y) for x, y in zip(exact, rounded)), "the sums were not rounded"
