"""One device and eight give the same loss and gradient, for any mesh, loss, model and number of microbatches."""

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
from care_jax.training.state import TrainingSetup, state_shardings
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
    """All of mesh x loss x (adapters, microbatches, tied, Gemma 2); without --slow a few, with each value in one."""
    plain = {
        ((8, 1, 1), "kto", True, 4, False, False),
        ((1, 8, 1), "dpo", False, 4, True, True),
        ((1, 1, 8), "plackett_luce", False, 1, False, False),
        ((2, 2, 2), "simpo", True, 1, True, False),
    }
    for case in itertools.product(MESHES, LOSSES, (False, True), (1, 4), (False, True), (False, True)):
        mesh, loss, adapted, count, tied, gemma = case
        parts = ("x".join(map(str, mesh)), loss, "lora" if adapted else "full", f"{count}microbatches")
        name = "-".join((*parts, "tied" if tied else "untied", "gemma2" if gemma else "llama"))
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
    adapters = adapter_shardings = None
    mesh = make_mesh(*sizes)
    if adapted:
        model = lora.attach(model, RANK, 8.0)
        fresh = lora.init(model, RANK)
        rng = np.random.default_rng(0)
        adapters = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape, np.float32), fresh)
        adapter_shardings = lora.shardings(model.arch, RANK, "all", mesh)
    all_groups = groups(4, seed=5)
    parts = [all_groups] if count == 1 else [[group] for group in all_groups]
    batch = with_mismatched(plain_batch(parts, rows=ROWS), name)
    step = make_step(model, losses.get(name), KEEP_GRADIENT, examples=12 if name == "aot" else None)
    state = init_state(params, KEEP_GRADIENT, adapters)
    alone, metrics = jax.jit(step)(state, batch)
    after, sharded_metrics = on_mesh(mesh, step, state, batch, model, KEEP_GRADIENT, adapter_shardings)
    same_metrics(jax.device_get(sharded_metrics), jax.device_get(metrics))
    close(jax.device_get(after.opt_state), jax.device_get(alone.opt_state))


def on_mesh(mesh, step, state, batch, model, optimizer, adapters=None):
    """State and metrics after one step on a mesh. adapters: their shardings."""
    with jax.set_mesh(mesh):
        setup = TrainingSetup(model, optimizer, optax.constant_schedule(0.0), adapters)
        shardings = state_shardings(state, setup, mesh)
        placed = placement.batch_shardings(batch, mesh)
        jitted = jax.jit(step, in_shardings=(shardings, placed), out_shardings=(shardings, None))
        return jitted(jax.device_put(state, shardings), placement.to_devices(batch, placed, ROWS))


def test_factored_moments_and_sums_in_bfloat16_are_sharded_and_give_the_same_update(tmp_path):
    model, params = tiny_model(tmp_path, hidden_size=128, intermediate_size=256, num_attention_heads=4)
    config = OptimizerConfig(name="adafactor", learning_rate=1e-2, warmup=0, schedule="constant")
    rule = make_optimizer(config, make_schedule(config, 1))
    batch = plain_batch([[group] for group in groups(4, seed=5)], rows=ROWS)
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
        [x for name in ("v_row", "v_col") for x in jax.tree.leaves(optax.tree_utils.tree_get(each.opt_state, name))]
        for each in (before, after)
    )
    factored = [x for x in rounded if x.ndim > 1]
    assert len(factored) == 2 * 3, "gate, up and down are large enough"
    assert not any(x.sharding.is_fully_replicated for x in factored)
    for sharded, single, start in zip(*(jax.tree.leaves(x.params) for x in (after, alone, state))):
        moved = float(jnp.max(jnp.abs(single - start)))
        assert moved > 0
        np.testing.assert_allclose(sharded, single, rtol=0, atol=0.02 * moved)
    assert any(np.any(x != y) for x, y in zip(exact, rounded)), "the sums were not rounded"
