"""Compares chunked log-probabilities with a full log-softmax: value, gradient and memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from care_jax import logps
from care_jax.logps import completion_logps, sequence_logps
from care_jax.sharding import make_mesh


def full(hidden, head, targets, soft_cap=None):
    """The reference: all logits at once, in float32."""
    logits = hidden.astype(jnp.float32) @ head.astype(jnp.float32).T
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[:, None], axis=-1)[:, 0]


def example(count, width=8, vocabulary=37, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(count, width)), dtype)
    head = jnp.asarray(rng.normal(size=(vocabulary, width)), dtype)
    return hidden, head, jnp.asarray(rng.integers(0, vocabulary, count), jnp.int32), jnp.asarray(rng.normal(size=count))


def run(function, hidden, head, coefficients):
    """Returns (values, (gradient of hidden, gradient of head)) of one program."""

    def total(h, w):
        values = function(h, w)
        return jnp.sum(values * coefficients), values

    (_, values), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(hidden, head)
    return values, gradients


@pytest.mark.parametrize(
    ("count", "chunk", "soft_cap"),
    [(23, 8, None), (23, 8, 3.0), (5, 1024, None), (1, 1, 3.0), (23, 1, 3.0), (37, 2, None)],
)
def test_equals_a_full_log_softmax_in_value_and_gradient(count, chunk, soft_cap):
    hidden, head, targets, coefficients = example(count)
    ours, got = run(
        lambda h, w: completion_logps(h, w, targets, soft_cap=soft_cap, chunk=chunk), hidden, head, coefficients
    )
    theirs, expected = run(lambda h, w: full(h, w, targets, soft_cap), hidden, head, coefficients)
    np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=1e-6)
    for mine, oracle in zip(got, expected):
        np.testing.assert_allclose(mine, oracle, atol=2e-6, rtol=1e-6)


def test_a_frozen_head_gives_the_same_hidden_gradient_and_none_to_the_head():
    hidden, head, targets, coefficients = example(21)
    values, frozen = run(
        lambda h, w: completion_logps(h, w, targets, soft_cap=3.0, chunk=8, frozen_head=True),
        hidden,
        head,
        coefficients,
    )
    same, trained = run(lambda h, w: completion_logps(h, w, targets, soft_cap=3.0, chunk=8), hidden, head, coefficients)
    np.testing.assert_array_equal(values, same)
    np.testing.assert_allclose(frozen[0], trained[0], atol=1e-6)
    assert not np.any(frozen[1])


def test_bfloat16_inputs_give_float32_values_near_the_exact_ones():
    hidden, head, targets, coefficients = example(19, width=32, dtype=jnp.bfloat16)
    ours, got = run(lambda h, w: completion_logps(h, w, targets, chunk=8), hidden, head, coefficients)
    exact, expected = run(lambda h, w: full(h, w, targets), hidden, head, coefficients)
    assert ours.dtype == jnp.float32
    # Products of bfloat16 numbers are exact in float32: only the accumulation differs.
    np.testing.assert_allclose(ours, exact, atol=1e-5)
    for mine, theirs, given in zip(got, expected, (hidden, head)):
        assert mine.dtype == given.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(theirs, np.float32), atol=0.02 * float(jnp.max(jnp.abs(theirs)))
        )


def test_a_float32_head_under_bfloat16_states_gets_a_float32_gradient():
    hidden, head, targets, coefficients = example(19, dtype=jnp.bfloat16)
    head = head.astype(jnp.float32)
    _, (_, gradient) = run(lambda h, w: completion_logps(h, w, targets, chunk=8), hidden, head, coefficients)
    assert gradient.dtype == jnp.float32


def test_no_tokens():
    hidden, head, targets, _ = example(4)
    assert completion_logps(hidden[:0], head, targets[:0]).shape == (0,)


def shapes(jaxpr):
    """Shapes of every value in a jaxpr and all jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield from (tuple(getattr(v.aval, "shape", ())) for v in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes(inner)


@pytest.mark.parametrize("frozen_head", [False, True])
def test_no_array_of_all_tokens_by_the_vocabulary_exists(frozen_head):
    count, chunk, vocabulary = 60, 16, 131
    hidden, head, targets, _ = example(count, vocabulary=vocabulary)

    def loss(h, w):
        return jnp.sum(completion_logps(h, w, targets, chunk=chunk, frozen_head=frozen_head))

    def largest(function):
        jaxpr = jax.make_jaxpr(jax.value_and_grad(function, argnums=(0, 1)))(hidden, head).jaxpr
        return max(int(np.prod(shape)) for shape in shapes(jaxpr) if count in shape)

    assert count * 8 < largest(loss) <= chunk * vocabulary
    # The check finds such arrays if there are any: the reference has them.
    assert largest(lambda h, w: jnp.sum(full(h, w, targets))) == count * vocabulary


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("columns", [2048, 8])  # the vocabulary in one tile, and in several that overlap
@pytest.mark.parametrize(("sizes", "vocabulary"), [((2, 2, 2), 36), ((1, 4, 2), 36), ((8, 1, 1), 37)])
def test_a_mesh_gives_the_same_and_holds_no_whole_head(sizes, vocabulary, columns, dtype, monkeypatch):
    """36 divides by tensor x fsdp = 4 (the vocabulary is split), not by 8 (only over tensor)."""
    hidden, head, targets, coefficients = example(45, vocabulary=vocabulary, dtype=dtype)

    def total(h, w, frozen_head):
        values = completion_logps(h, w, targets, soft_cap=3.0, chunk=2, frozen_head=frozen_head)
        return jnp.sum(values * coefficients), values

    def both(h, w):
        trained = jax.value_and_grad(functools.partial(total, frozen_head=False), argnums=(0, 1), has_aux=True)(h, w)
        return trained, jax.grad(functools.partial(total, frozen_head=True), has_aux=True)(h, w)

    ((_, values), gradients), (slopes, _) = jax.jit(both)(hidden, head)
    monkeypatch.setattr(logps, "_CPU_COLUMNS", columns)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        stored = jax.device_put(
            head, NamedSharding(mesh, PartitionSpec("tensor" if vocabulary == 36 else None, "fsdp"))
        )
        program = jax.jit(both, out_shardings=None).lower(hidden, stored).compile()
        ((_, mesh_values), mesh_gradients), (mesh_slopes, _) = program(hidden, stored)
    np.testing.assert_allclose(mesh_values, values, atol=2e-6, rtol=1e-6)
    for mine, single in zip((*mesh_gradients, mesh_slopes), (*gradients, slopes)):
        assert mine.dtype == single.dtype == dtype
        mine, single = (np.asarray(x, np.float32) for x in (mine, single))
        # Both gradients in bfloat16 are rounded once: they may differ by two units in the last place.
        slack = 2e-6 if dtype == jnp.float32 else 2.0**-7 * float(np.max(np.abs(single)))
        np.testing.assert_allclose(mine, single, atol=slack, rtol=1e-6)
    if sizes == (2, 2, 2) and dtype == jnp.float32:
        # Inside the loops over pieces and tiles no gradient of the head is summed over devices: only once, after them.
        text = program.as_text()
        loops, entry = text.split("\nENTRY ")
        stored = f"f32[2,{vocabulary // 4},4]"  # half the width of the two parts that the devices of fsdp work on
        tiles = "f32[8,2]" if columns == 8 else f"f32[8,{vocabulary // 4}]"
        assert stored in text
        assert tiles in loops
        for shape in (stored, tiles):
            assert not re.search(rf"{re.escape(shape)}\S* all-reduce\(", loops)
        assert re.search(rf"{re.escape(stored)}\S* all-reduce\(", entry)


def test_sequences_are_sums_of_their_tokens_without_the_padding():
    tokens = jnp.asarray([-1.0, -2.0, -4.0, -8.0, -16.0])
    segments = jnp.asarray([0, 2, 2, 3, 0], jnp.int32)
    np.testing.assert_array_equal(sequence_logps(tokens, segments, 3), [-17.0, 0.0, -6.0])
