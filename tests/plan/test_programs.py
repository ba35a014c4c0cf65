"""What the compiled train step holds, and what it costs to compile."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import jax
import pytest

from care_jax import config
from care_jax.config import Config
from care_jax.plan import Program, hlo, programs, targets
from care_jax.plan.programs import compile_forward, compile_train
from care_jax.plan.shapes import shapes_of
from tests.plan.conftest import TINY
from tests.plan.test_targets import needs_libtpu


def test_no_array_is_as_large_as_rows_times_length_times_vocabulary(step):
    shapes, compiled = step
    rows = shapes.batch_shape.rows // (shapes.mesh.shape["data"] * shapes.mesh.shape["fsdp"])
    logits = rows * shapes.batch_shape.row_length * shapes.setup.model.arch.vocab_size // shapes.mesh.shape["tensor"]
    largest = max(math.prod(array.shape) for each in hlo.operations(compiled.as_text()) for array in each.results)
    assert largest < logits, "one device has all logits of its rows"


def test_the_vocabulary_matrix_is_never_gathered_completely_in_float32(step):
    shapes, compiled = step
    matrix = {shapes.setup.model.arch.vocab_size, shapes.setup.model.arch.hidden}
    for each in hlo.operations(compiled.as_text()):
        if each.kind.startswith("all-gather"):
            for array in each.results:
                assert array.dtype != "f32" or not matrix <= set(array.shape), each.text


def test_what_the_rules_shard_is_sharded_in_the_compiled_step(step):
    shapes, compiled = step
    (state, _), _ = compiled.input_shardings
    weights = jax.tree.leaves(shapes.state.params)
    assert len(weights) == len(jax.tree.leaves(state.params))
    for abstract, sharding in zip(weights, jax.tree.leaves(state.params)):
        assert sharding.shard_shape(abstract.shape) == abstract.sharding.shard_shape(abstract.shape)
        if abstract.ndim > 2 or abstract.size > 10_000:
            assert not sharding.is_fully_replicated, abstract
    moments = [x for x in jax.tree.leaves(shapes.state.opt_state) if x.ndim > 2]
    assert len(moments) >= 2
    assert all(not x.sharding.is_fully_replicated for x in moments)


def test_a_card_that_is_not_here_holds_no_weights_in_float32(tmp_path):
    """A CPU's compiler holds them, since a CPU does not multiply bfloat16; an estimate for another device must not."""
    shape = {"num_hidden_layers": 8, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **shape}))
    model = {"path": str(tmp_path), "dtype": "bfloat16", "param_dtype": "float32", "remat": "full", "lora": {"r": 2}}
    recipe = Config.from_any("quickstart", **{"model": model, "mesh": {"data": 1, "fsdp": 1, "tensor": 1}})
    here = dataclasses.replace(targets.local(), devices=tuple(jax.devices()[:1]))
    temporaries = {}
    for target in (here, targets.local(memory=10**9)):
        shapes = shapes_of(recipe, target)
        temporaries[target.estimate] = compile_train(shapes, lambda line: None)[0].temporaries
    blocks = sum(leaf.size for leaf in jax.tree.leaves(shapes.state.params["blocks"]) if leaf.ndim > 2)
    assert temporaries[False] - temporaries[True] > 3 * blocks


@pytest.mark.parametrize(
    ("changes", "without_optimizer", "reference"),
    [
        ({}, True, False),
        ({"reference.path": "sample"}, True, True),
        ({"reference.mode": "online"}, False, True),
        ({"loss": {"name": "simpo"}}, None, False),
    ],
)
def test_the_reference_counts_in_the_programs_that_hold_it(tiny, monkeypatch, changes, without_optimizer, reference):
    def compiled(name, jitted, arguments, array_bytes, *rest):
        return Program(name, array_bytes, 0, None, 0, {}, 0.0), None

    monkeypatch.setattr(programs, "_compile", compiled)
    shapes = shapes_of(Config.from_any(tiny, **changes), targets.local())
    train, _ = compile_train(shapes, lambda line: None)
    forward = {program.name: program.array_bytes for program in compile_forward(shapes, lambda line: None)}
    online = changes.get("reference.mode") == "online"
    assert ("reference" in train.array_bytes) == ("reference" in forward["evaluation"]) == online
    assert ("reference" in forward) == (without_optimizer is not None)
    if without_optimizer is not None:
        assert (forward["reference"]["optimizer"] == 0) == without_optimizer
        assert forward["reference"].get("reference", 0) == (forward["reference"]["parameters"] if reference else 0)


def test_a_long_compilation_reports_progress(tiny, monkeypatch):
    monkeypatch.setattr(programs, "_TICK", 0.001)
    said = []
    compile_forward(shapes_of(tiny, targets.local()), said.append)
    assert any(line.startswith("still compiling, after ") for line in said)


@pytest.mark.slow
def test_eight_billion_weights_on_tpus_take_no_more_than_in_the_prototype():
    """PERFORMANCE: 8B, float32 AdamW, rows of 1024: v5p:2x2x1 at 16k tokens per chip, v5e:8x8 at 1k; GiB per chip."""
    needs_libtpu()
    rows = ["data.max_length=1024", "batch.row_length=1024", "batch.examples=16"]
    for name, microbatch, arguments, temporaries in (("v5p:2x2x1", 64, 23, 25), ("v5e:8x8", 64, 1.5, 2.0)):
        recipe = config.load("dpo-llama3.1-8b", overrides=[*rows, f"batch.microbatch_rows={microbatch}"])
        shapes = shapes_of(recipe, targets.topology(name))
        program, _ = compile_train(shapes, lambda line: None)
        assert sum(program.array_bytes.values()) / 2**30 <= arguments
        assert program.temporaries / 2**30 <= temporaries


@pytest.mark.slow
def test_matrix_products_kept_on_the_host_take_no_device_memory(tmp_path):
    needs_libtpu()
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "num_hidden_layers": 16}))
    temporaries = {}
    for remat in ("dots", "offload"):
        recipe = Config.from_any(
            "quickstart",
            **{"model": {"path": str(tmp_path), "dtype": "bfloat16", "remat": remat}, "batch.microbatch_rows": 64},
        )
        shapes = shapes_of(recipe, targets.topology("v5e:1x1"))
        temporaries[remat] = compile_train(shapes, lambda line: None)[0].temporaries
    assert temporaries["offload"] < 0.7 * temporaries["dots"]


MEASURE = """
import ctypes, gc, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from care_jax.config import Config
from care_jax.plan import targets
from care_jax.plan.programs import compile_train
from care_jax.plan.shapes import shapes_of

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def free_memory():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)

recipe = Config.from_any("quickstart", **{
    "model": {"path": sys.argv[1], "dtype": "float32", "remat": "full"},
    "batch": {"examples": 64, "row_length": 256, "microbatch_rows": 16},
})
shapes = shapes_of(recipe, targets.local())
program, compiled = compile_train(shapes, lambda line: None)
free_memory()
before = status("VmRSS")
def fill(x):
    return jax.device_put(np.full(x.shape, 0.01 if x.dtype == jnp.float32 else 1, x.dtype), x.sharding)
state, batch = jax.block_until_ready(jax.tree.map(fill, (shapes.state, shapes.batch)))
free_memory()
pathlib.Path("/proc/self/clear_refs").write_text("5")
for _ in range(2):
    state, _ = jax.block_until_ready(compiled(state, batch))
print((status("VmHWM") - before) / program.total)
"""


@pytest.mark.slow
def test_the_plans_bytes_are_those_of_a_real_run(tmp_path):
    """On this host: the peak of resident memory over two steps, in a separate process."""
    larger = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **larger}))
    # Otherwise glibc keeps freed memory for later, which counts as resident.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = os.environ | {"XLA_FLAGS": "", "NPROC": "", "JAX_PLATFORMS": "cpu"} | malloc
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_depth_costs_no_compile_time(tmp_path, request):
    """Layers are scanned, so 32 compile as fast as 8."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    request.addfinalizer(lambda: jax.config.update("jax_enable_compilation_cache", before))
    seconds = {}
    for layers in (8, 32):
        (tmp_path / "config.json").write_text(json.dumps({**TINY, "num_hidden_layers": layers}))
        recipe = Config.from_any("quickstart", **{"model.path": str(tmp_path)})
        shapes = shapes_of(recipe, targets.local(memory=10**9))
        seconds[layers] = compile_train(shapes, lambda line: None)[0].compile_seconds
    assert seconds[32] <= 1.3 * seconds[8]
