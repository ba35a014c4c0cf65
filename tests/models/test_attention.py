"""Compares the programs of attention with single sequences: packed rows, windows, caps, shared prompts, gradients.

The kernels of accelerators run their own code by Pallas's interpreter.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding

import care_jax.models as models
from care_jax import hardware, sharding
from care_jax.errors import UserError
from care_jax.models import attention, kernels
from tests.models.tiny_models import GOLDEN

LENGTH, HEADS, KV_HEADS, SIZE = 160, 4, 2, 16
SEGMENTS = {1: 50, 2: 40, 3: 34, 4: 24, 0: 12}  # a prompt, two responses, one more sequence, padding
WINDOW = 17


@functools.cache
def packed(shared: bool) -> dict[str, np.ndarray]:
    """The layout of one row: segments 2 and 3 continue prompt 1, or all segments are independent."""
    ids = np.repeat(list(SEGMENTS), list(SEGMENTS.values()))
    start = {number: SEGMENTS[1] if shared and number in (2, 3) else 0 for number in SEGMENTS}
    positions = np.concatenate([start[number] + np.arange(size) for number, size in SEGMENTS.items()])
    layout = {"positions": positions, "segment_ids": ids}
    if shared:
        layout["prompt_segment_ids"] = np.where(np.isin(ids, (2, 3)), 1, ids)
    return {name: x[None].astype(np.int32) for name, x in layout.items()}


def alone(shared: bool, q, k, v, **options) -> jax.Array:
    """The same by plain XLA, with one sequence per row, after a copy of its prompt."""
    ids = packed(shared)["segment_ids"][0]
    segments = {number: np.flatnonzero(ids == number) for number in (1, 2, 3, 4)}
    prompts = [segments[1] if shared and number in (2, 3) else segments[1][:0] for number in segments]
    sequences = [np.concatenate(parts) for parts in zip(prompts, segments.values())]
    width = max(map(len, sequences))
    index = np.stack([np.pad(sequence, (0, width - len(sequence))) for sequence in sequences])
    real = np.stack([np.arange(width) < len(sequence) for sequence in sequences])
    out = attention.attend(
        *(x[0, index] for x in (q, k, v)),
        positions=jnp.broadcast_to(jnp.arange(width)[None], index.shape),
        segment_ids=jnp.asarray(real, jnp.int32),
        prompt_segment_ids=None,
        implementation="xla",
        **options,
    )
    responses = [out[row, len(prompts[row]) : len(sequence)] for row, sequence in enumerate(sequences)]
    return jnp.concatenate(responses)[None]


@functools.cache
def inputs() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = [(1, LENGTH, heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def numbers(attend):
    """The outputs of the real tokens, and the gradients of a weighted sum of them."""

    @jax.jit
    def both(q, k, v, weights):
        def loss(q, k, v):
            out = attend(q, k, v)[:, : LENGTH - SEGMENTS[0]]
            return jnp.sum(out * weights[:, : out.shape[1]]), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, gradients

    return both(*inputs())


CASES = {  # window, soft cap, shared prompt
    "plain": (None, None, False),
    "window and cap": (WINDOW, 2.0, False),
    "shared prompt and cap": (None, 2.0, True),
    "shared prompt, window and cap": (WINDOW, 2.0, True),
}
SERVES = {
    "xla": ("window and cap", "shared prompt, window and cap"),
    "xla_chunked": ("window and cap", "shared prompt, window and cap"),
    "splash": ("window and cap", "shared prompt and cap"),
    "pallas": ("plain",),
}


@functools.cache
def expected(case: str):
    window, soft_cap, shared = CASES[case]
    return numbers(functools.partial(alone, shared, window=window, soft_cap=soft_cap, scale=0.3))


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRET", True)
    monkeypatch.setattr(attention, "CHUNK", 64)


@pytest.mark.parametrize(("implementation", "case"), [(name, case) for name in SERVES for case in SERVES[name]])
def test_packed_equals_alone_in_every_program(interpreted, implementation, case):
    window, soft_cap, shared = CASES[case]
    layout = {"prompt_segment_ids": None, **jax.tree.map(jnp.asarray, packed(shared))}
    options = {"window": window, "soft_cap": soft_cap, "scale": 0.3, "implementation": implementation}
    actual = numbers(functools.partial(attention.attend, **layout, **options))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected(case))):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def test_on_a_mesh_each_device_runs_the_kernel_on_its_rows_and_heads(interpreted):
    mesh = sharding.make_mesh(2, 1, 2, jax.devices()[:4])
    rows = [jnp.concatenate([x[:, :128]] * 2) for x in (*inputs()[:3], packed(True)["segment_ids"])]

    def run(*arrays):
        attend = functools.partial(kernels.attend, "splash", window=None, soft_cap=None, scale=0.3)
        return jax.jit(lambda q, k, v, ids: attend(q, k, v, ids, None))(*arrays)

    plain = run(*rows)
    with jax.set_mesh(mesh):
        specs = [sharding.spec(("rows", None, "heads", None))] * 3 + [sharding.spec(("rows", None))]
        placed = [jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) for x, spec in zip(rows, specs)]
        spread = run(*placed)
    assert spread.sharding.spec == specs[0]
    np.testing.assert_allclose(spread, plain, rtol=1e-6, atol=1e-6)


def refused(implementation: str, **changes) -> str:
    head_dim, soft_cap = changes.pop("head_dim", 64), changes.pop("soft_cap", None)
    call = kernels.AttentionCall(rows=2, length=256, window=None, shared_prompts=False, dtype=jnp.bfloat16)
    with pytest.raises(UserError) as error:
        attention.choose(implementation, call._replace(**changes), head_dim, soft_cap)
    return str(error.value)


def test_a_refusal_names_the_reason_and_what_to_set(monkeypatch):
    assert "did you mean 'xla_chunked'" in refused("xla_chunk")
    assert "splash cannot serve: it runs on a TPU, and the devices are of platform 'cpu'" in refused("splash")
    monkeypatch.setattr(hardware, "platform", lambda: "tpu")
    assert "it runs on a GPU" in refused("pallas")
    assert "set batch.share_prompts: false" in refused("splash", shared_prompts=True, window=255)
    monkeypatch.setattr(kernels, "_BACKWARD", "another signature")
    assert "has another backward pass" in refused("splash")
    monkeypatch.setattr(hardware, "platform", lambda: "gpu")
    assert "no soft cap, and the model's attention is capped at 50 (model.attention: auto" in refused(
        "pallas", soft_cap=50.0
    )
    assert "heads of up to 128 numbers, and the model's have 256" in refused("pallas", head_dim=256)
    assert "no sliding window, and the model's is 255" in refused("pallas", window=255)
    assert "set batch.share_prompts: false" in refused("pallas", shared_prompts=True)
    assert "set model.dtype: bfloat16 (found float32)" in refused("pallas", dtype=jnp.float32)
    with jax.set_mesh(sharding.make_mesh(8, 1, 1)):
        assert "2 rows do not divide by the 8 parts" in refused("pallas")


def test_a_kernel_that_can_never_serve_is_refused_before_weights_are_read():
    with pytest.raises(UserError, match="pallas cannot serve: it has no soft cap"):
        models.from_config(GOLDEN / "gemma2", attention="pallas")
    with pytest.raises(UserError, match="splash cannot serve: it runs on a TPU"):
        models.from_pretrained(GOLDEN / "llama3", attention="splash")
    assert models.from_config(GOLDEN / "llama3", attention="splash").attention == "splash"


def test_auto_prints_each_choice_once(monkeypatch, capsys):

    def choice(length: int, window: int | None) -> str:
        call = kernels.AttentionCall(2, length, window, shared_prompts=True, dtype=jnp.bfloat16)
        return attention.choose("auto", call, head_dim=64, soft_cap=None)

    attention._say_once.cache_clear()
    assert choice(512, 4) == "xla"
    assert choice(256, None) == "xla"
    assert choice(8192, None) == "xla_chunked"
    monkeypatch.setattr(hardware, "platform", lambda: "tpu")
    assert choice(512, 512) == "splash"
    assert choice(512, 4) == "xla"
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "attention: auto is xla on cpu, in rows of up to 1024",
        "attention: auto is xla_chunked on cpu, in rows of more than 1024",
    ]
    assert lines[2] == "attention: auto is splash on tpu"
    assert "auto is xla on tpu, in rows of 512: splash cannot serve: its window counts slots" in lines[3]
    assert len(lines) == 4


@pytest.mark.slow
def test_the_decoder_compiles_for_a_tpu_with_splash(monkeypatch):
    """Ahead of time, forward and backward, on a mesh of 2 x 2 chips: grouped heads, windows, caps, shared prompts."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another program may be compiling for a TPU too
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
    mesh = sharding.make_mesh(1, 2, 2, devices)
    for family, dtype in (("llama3", jnp.float32), ("gemma2", jnp.bfloat16)):
        for shared in (True, False):
            length, window = 512, 512 if shared else 200  # a window that cuts a row goes without shared prompts
            arch = models.read_config(GOLDEN / family)
            kinds = tuple(dataclasses.replace(kind, window=kind.window and window) for kind in arch.kinds)
            arch = dataclasses.replace(arch, heads=4, kv_heads=2, head_dim=64, kinds=kinds)
            model = models.Decoder(arch, dtype, remat="full", attention="splash", shared_prompts=shared)
            rows = jax.ShapeDtypeStruct(
                (4, length), jnp.int32, sharding=NamedSharding(mesh, sharding.spec(("rows", None)))
            )

            def loss(params, *places, model=model):
                return jnp.sum(model.apply({"params": params}, *places, method="hidden").astype(jnp.float32))

            with jax.set_mesh(mesh):
                params = models.abstract_params(arch, mesh=mesh)
                text = jax.jit(jax.grad(loss)).lower(params, rows, rows, rows, rows).compile().as_text()
            passes = 2 if shared else 1
            assert text.count('custom_call_target="tpu_custom_call"') >= 3 * passes * len(arch.kinds), text[:200]


@pytest.mark.slow
def test_the_kernel_of_the_gpu_lowers():
    """Generates its code for CUDA, which is compiled and run on a GPU only."""
    rows = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((2, 256, 2, 64), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def loss(q, k, v, ids):
        out = kernels.attend("pallas", q, k, v, ids, None, window=None, soft_cap=None, scale=0.125)
        return jnp.sum(out.astype(jnp.float32))

    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(rows, keys, keys, ids).lower(lowering_platforms=("cuda",))
    assert "mha_backward" in lowered.as_text()
