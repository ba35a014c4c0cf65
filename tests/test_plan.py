"""What a plan counts, and what the compiled step holds and sends."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import care_jax
from care_jax import cli, config, plan
from care_jax.config import Config
from care_jax.errors import UserError
from care_jax.hardware import CHIPS
from care_jax.plan import advice, flops, hlo, known, programs, targets, text
from care_jax.plan.programs import held_by_state
from care_jax.plan.shapes import abstract_batch, layout_of
from care_jax.training.objective import objective_of
from care_jax.training.placing import bytes_per_device

MODULE = """\
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %x, f32[] %y)
}

%layer (carry: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %gathered = bf16[64,16]{1,0:T(8,128)} all-gather(bf16[8,16]{1,0} %w), channel_id=3, dimensions={0}
  %piece = bf16[16,16]{1,0:T(8,128)} all-gather(bf16[8,16]{1,0} %w), channel_id=3, dimensions={0}
  %start = (f32[8,16], f32[8,16]) all-reduce-start(f32[8,16] %h), to_apply=%add
  ROOT %next = (s32[], f32[8,16]) tuple(%i, %done)
}

%end (carry: (s32[], f32[8,16])) -> pred[] {
  ROOT %less = pred[] compare(s32[] %i, s32[] %n), direction=LT
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %loop = (s32[], f32[8,16]) while(%t), condition=%end, body=%layer, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8,2]{1,0} reduce-scatter(f32[8,16] %y), dimensions={1}, to_apply=%add
}
"""


def test_collectives_are_counted_as_often_as_their_loop_runs():
    found = hlo.collectives(MODULE)
    assert found == {
        "all-gather": hlo.Traffic(5, 5 * 64 * 16 * 2),
        "all-reduce": hlo.Traffic(5, 5 * 8 * 16 * 4),
        "reduce-scatter": hlo.Traffic(1, 8 * 2 * 4),
    }


def test_a_loop_that_the_compiler_does_not_count_ends_at_its_conditions_number():
    counted = MODULE.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert hlo.collectives(counted)["all-gather"].count == 1, "a traced end"
    counted = counted.replace("  ROOT %less", "  %most = s32[]{:T(128)} constant(7)\n  ROOT %less")
    assert hlo.collectives(counted)["all-gather"].count == 7


def test_flops_are_those_of_matrix_products_loops_and_recomputation_included():
    def layers(x, weights):
        @jax.checkpoint
        def one(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(one, x, weights)[0])

    x, weights = jnp.ones((4, 8)), jnp.ones((3, 8, 8))
    forward = 3 * 2 * 4 * 8 * 8
    assert flops.count(jax.make_jaxpr(layers)(x, weights)) == forward
    # Two products a layer backward, and its forward again.
    assert flops.count(jax.make_jaxpr(jax.grad(layers, (0, 1)))(x, weights)) == 4 * forward

    def looped(x, w, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ w, x)

    assert flops.count(jax.make_jaxpr(looped)(x, weights[0], 7), unknown_trips=5) == 5 * 2 * 4 * 8 * 8


def test_the_known_models_have_their_published_size():
    billions = {
        "Qwen/Qwen2.5-0.5B-Instruct": 0.494,
        "Qwen/Qwen2.5-1.5B-Instruct": 1.544,
        "Qwen/Qwen2.5-7B-Instruct": 7.616,
        "Qwen/Qwen2.5-72B-Instruct": 72.706,
        "meta-llama/Llama-3.2-1B-Instruct": 1.236,
        "meta-llama/Llama-3.1-8B-Instruct": 8.030,
        "mistralai/Mistral-7B-Instruct-v0.3": 7.248,
        "google/gemma-2-2b-it": 2.614,
        "google/gemma-2-9b-it": 9.242,
    }
    from care_jax.models.arch import num_params

    assert billions.keys() == known.KNOWN.keys()
    for name, size in billions.items():
        assert num_params(known.arch_of(name)) / 1e9 == pytest.approx(size, abs=6e-4), name


def test_every_shipped_recipe_names_a_known_model_and_every_machine_a_target():
    root = pathlib.Path(care_jax.__file__).parents[1] / "configs"
    for recipe in root.glob("*.yaml"):
        path = config.load(recipe).model.path
        assert path == "sample" or path in known.KNOWN, recipe
    machines = {path.stem for path in (root / "machines").glob("*.yaml")}
    assert machines - {"cpu"} == set(targets.MACHINES)
    assert all(card is None or card in CHIPS for _, card in targets.MACHINES.values())


@pytest.fixture
def quickstart():
    return config.load("quickstart", overrides=["data.train.0.cultures=[chinese]", "data.max_length=128"])


@pytest.mark.parametrize("loss", ["dpo", "kto", "plackett_luce"])
def test_abstract_batches_are_those_of_a_real_layout(quickstart, tmp_path, loss):
    """The shapes that are compiled without the data are the ones that a run fills, sizes set to the run's."""
    from care_jax.data import pipeline
    from care_jax.data.chat import load_tokenizer
    from care_jax.evaluation.model import local_folder
    from care_jax.training.data import prepare

    changed = Config.from_any(quickstart, **{"loss": {"name": loss}, "data.eval": [], "data.max_steps": 2})
    data = prepare(changed, load_tokenizer(str(local_folder("sample"))), objective_of(changed), tmp_path)
    plan_ = pipeline.plan_step(
        pipeline.step_units(data.stream, 0, data.examples), data.corpus, data.layout, data.mismatched
    )
    filled = pipeline.fill(plan_, data.corpus)
    expected = abstract_batch(data.layout, data.mismatched)
    assert jax.tree.structure(filled) == jax.tree.structure(expected)
    for found, shape in zip(jax.tree.leaves(filled), jax.tree.leaves(expected)):
        assert (np.shape(found), np.asarray(found).dtype) == (shape.shape, shape.dtype)
    bound = layout_of(changed, objective_of(changed))
    for name in ("rows", "row_length", "responses", "completions", "pairs", "groups", "width"):
        assert getattr(bound, name) >= getattr(data.layout, name), f"{name}: the bound is none"


TINY = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A recipe whose model is a config.json alone: nothing else is read."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return Config.from_any(
        "quickstart",
        **{
            "model": {"path": str(folder), "dtype": "bfloat16", "remat": "full"},
            "data.train": [{"reader": "care", "path": "nowhere.jsonl"}],
            "batch": {"examples": 64, "row_length": 256, "microbatch_rows": 64},
            "mesh": {"data": 1, "fsdp": 4, "tensor": 2},
        },
    )


@pytest.fixture(scope="module")
def step(tiny):
    """(shapes, compiled train step) on eight devices of this host."""
    return plan.compiled_step(tiny, targets.local(), say=lambda line: None)


def test_no_array_is_as_large_as_rows_times_length_times_vocabulary(step):
    made, compiled = step
    rows = made.layout.rows // (made.mesh.shape["data"] * made.mesh.shape["fsdp"])
    logits = rows * made.layout.row_length * made.model.arch.vocab_size // made.mesh.shape["tensor"]
    largest = max(math.prod(one.shape) for each in hlo.operations(compiled.as_text()) for one in each.results)
    assert largest < logits, "a device holds all logits of its rows"


def test_the_vocabulary_matrix_is_never_gathered_whole_in_float32(step):
    made, compiled = step
    whole = {made.model.arch.vocab_size, made.model.arch.hidden}
    for each in hlo.operations(compiled.as_text()):
        if each.kind.startswith("all-gather"):
            for one in each.results:
                assert one.dtype != "f32" or not whole <= set(one.shape), each.text


def test_what_the_rules_shard_is_sharded_in_the_compiled_step(step):
    made, compiled = step
    (state, _), _ = compiled.input_shardings
    weights = jax.tree.leaves(made.state.params)
    assert len(weights) == len(jax.tree.leaves(state.params))
    for abstract, found in zip(weights, jax.tree.leaves(state.params)):
        assert found.shard_shape(abstract.shape) == abstract.sharding.shard_shape(abstract.shape)
        if abstract.ndim > 2 or abstract.size > 10_000:
            assert not found.is_fully_replicated, abstract
    moments = [x for x in jax.tree.leaves(made.state.opt_state) if x.ndim > 2]
    assert len(moments) >= 2
    assert all(not x.sharding.is_fully_replicated for x in moments)


def test_a_card_that_is_not_here_holds_no_weights_in_float32(tmp_path):
    """A CPU's compiler does, as a CPU multiplies no bfloat16; an estimate for another device must not."""
    shape = {"num_hidden_layers": 8, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **shape}))
    model = {"path": str(tmp_path), "dtype": "bfloat16", "param_dtype": "float32", "remat": "full", "lora": {"r": 2}}
    recipe = Config.from_any("quickstart", **{"model": model, "mesh": {"data": 1, "fsdp": 1, "tensor": 1}})
    here = dataclasses.replace(targets.local(), devices=tuple(jax.devices()[:1]))
    found = {}
    for target in (here, targets.local(memory=10**9)):
        made = plan.prepare(recipe, target)
        found[target.estimate] = plan.compile_train(made, lambda line: None)[0].temporaries
    blocks = sum(leaf.size for leaf in jax.tree.leaves(made.state.params["blocks"]) if leaf.ndim > 2)
    assert found[False] - found[True] > 3 * blocks


def test_a_plan_adds_up_and_says_so(tiny, step, capsys):
    """On the compiled step of the fixture: the cache holds it."""
    target = dataclasses.replace(targets.local(), memory=2**30)
    made = plan.plan(tiny, target, say=lambda line: None)
    train = made.programs[0]
    params = bytes_per_device(step[0].state.params)
    assert train.held["parameters"] == params
    assert train.held["optimizer"] == pytest.approx(2 * params, rel=0.01)
    assert train.total == sum(train.held.values()) + train.temporaries
    assert made.fits
    assert {program.name for program in made.programs} == {"train", "reference", "evaluation"}
    assert {"all-gather", "all-reduce"} & set(train.collectives)
    # Rows x length tokens a microbatch; 2 a multiply-add, forward, recomputed and twice backward: 8 a weight and token.
    blocks = sum(x.size for x in jax.tree.leaves(step[0].state.params["blocks"]) if x.ndim > 2)
    slots = made.microbatches * made.rows * made.row_length
    assert 8 * blocks * slots < train.flops < 20 * blocks * slots
    shown = text.as_text(made)
    assert "fits: " in shown
    assert "all-gather" in shown
    assert json.loads(json.dumps(text.as_json(made)))["fits"] is True


def test_the_nearest_change_is_compiled_and_fits(tiny, monkeypatch):
    """With a compiler that only adds up, so that nothing is compiled here."""
    target = dataclasses.replace(targets.local(), memory=10**9)
    seen = []

    def compile_train(made, say):
        rows = made.layout.rows
        seen.append((made.config.model.remat, rows))
        return plan.Program("train", {"parameters": 0}, rows * 5 * 10**7, None, 0, {}, 0.0), None

    def compile_forward(made, say):
        passes.append(plan.Program("evaluation", {"parameters": 0}, made.layout.rows * 6 * 10**7, None, 0, {}, 0.0))
        return passes[-1:]

    passes = []
    monkeypatch.setattr(advice, "compile_train", compile_train)
    monkeypatch.setattr(advice, "compile_forward", compile_forward)
    changed = Config.from_any(tiny, **{"model.remat": "none"})
    found = advice.nearest_that_fits(changed, target, known.arch_of(tiny.model.path), lambda line: None)
    assert found.changes == ("model.remat=full", "batch.microbatch_rows=8")
    assert seen == [("full", 64), ("full", 32), ("full", 16), ("full", 8)]
    assert found.program is passes[-1], "with 16 rows the train step fits, the evaluation does not"
    assert found.program.total <= plan.MEMORY_FRACTION * 10**9


def test_what_cannot_fit_is_not_compiled(tiny, monkeypatch):
    target = dataclasses.replace(targets.local(), memory=10**5)
    monkeypatch.setattr(advice, "compile_train", functools.partial(pytest.fail, "compiled"))
    found = advice.nearest_that_fits(tiny, target, known.arch_of(tiny.model.path), lambda line: None)
    assert (found.changes, found.tried) == (None, 0)


def test_copies_of_the_state_are_spread_before_anything_that_changes_numbers(tiny, monkeypatch):
    """data=8 holds the state eight times: the first advice is to shard it."""
    target = targets.local()
    copied = Config.from_any(tiny, **{"mesh": {"data": 8, "fsdp": 1, "tensor": 1}})

    def compile_train(made, say):
        return plan.Program("train", held_by_state(made), 0, None, 0, {}, 0.0), None

    monkeypatch.setattr(advice, "compile_train", compile_train)
    monkeypatch.setattr(advice, "compile_forward", lambda made, say: [])
    held = sum(held_by_state(plan.prepare(copied, target)).values())
    target = dataclasses.replace(target, memory=held // 2)
    found = advice.nearest_that_fits(copied, target, known.arch_of(tiny.model.path), lambda line: None)
    assert found.changes == ("mesh.data=1", "mesh.fsdp=-1")
    # Six devices do not divide the width of 128: their rows still become fewer.
    six = dataclasses.replace(target, devices=target.devices[:6], memory=2**40)
    copied = Config.from_any(copied, **{"mesh.data": 6, "batch.microbatch_rows": 24})
    found = advice.nearest_that_fits(copied, six, known.arch_of(tiny.model.path), lambda line: None)
    assert found.changes == ("batch.microbatch_rows=12",)


def test_no_change_is_tried_twice(tiny, monkeypatch):
    rounded = {"optimizer.moment_dtype": "bfloat16", "optimizer.accumulate_dtype": "bfloat16"}
    recipe = Config.from_any(tiny, **rounded)
    target = dataclasses.replace(targets.local(), memory=2**40)
    tried = []
    program = plan.Program("train", {"parameters": 2**41}, 0, None, 0, {}, 0.0)
    monkeypatch.setattr(advice, "compile_train", lambda made, say: (program, None))
    advice.nearest_that_fits(recipe, target, known.arch_of(tiny.model.path), tried.append)
    assert len(tried) > 3
    assert not any("bfloat16" in line for line in tried), "it is in bfloat16 already"


@pytest.mark.parametrize(
    ("changes", "without_optimizer", "reference"),
    [
        ({}, True, False),
        ({"reference.path": "sample"}, True, True),
        ({"reference.mode": "online"}, False, True),
        ({"loss": {"name": "simpo"}}, None, False),
    ],
)
def test_a_plan_counts_the_references_weights_where_they_are(tiny, monkeypatch, changes, without_optimizer, reference):
    def compiled(name, jitted, arguments, held, *rest):
        return plan.Program(name, held, 0, None, 0, {}, 0.0), None

    monkeypatch.setattr(programs, "_compile", compiled)
    made = plan.prepare(Config.from_any(tiny, **changes), targets.local())
    train, _ = plan.compile_train(made, lambda line: None)
    found = {program.name: program.held for program in plan.compile_forward(made, lambda line: None)}
    online = changes.get("reference.mode") == "online"
    assert ("reference" in train.held) == ("reference" in found["evaluation"]) == online
    assert ("reference" in found) == (without_optimizer is not None)
    if without_optimizer is not None:
        assert (found["reference"]["optimizer"] == 0) == without_optimizer
        assert found["reference"].get("reference", 0) == (found["reference"]["parameters"] if reference else 0)


@pytest.mark.parametrize(("given", "size"), [("24GB", 24 * 10**9), ("22.5GiB", int(22.5 * 2**30))])
def test_memory_is_given_with_its_unit(given, size):
    assert targets.parse_memory(given) == size
    for wrong in ("24", "0GB", "-1GB"):
        with pytest.raises(UserError, match="--memory"):
            targets.parse_memory(wrong)


def test_a_cpu_has_its_part_of_this_machines_memory():
    assert 2**28 < targets.local().memory * len(jax.devices()) < 2**50


def test_cards_that_are_not_here_may_be_several():
    """In a process of its own, as jax must be told before it starts."""
    words = ["quickstart", "--devices", "4", "--memory", "24GB", "--json", "batch.microbatch_rows=4"]
    command = [str(pathlib.Path(sys.executable).with_name("care-jax")), "plan", *words]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["devices"], found["mesh"]["fsdp"], found["fits"], found["estimate"]) == (4, 4, True, True)
    assert found["programs"]["train"]["collectives"]


def test_a_runs_devices_are_said_as_plan_takes_them():
    assert re.fullmatch(r"--devices 8 --memory [\d.]+GB", targets.words(jax.devices()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["h200", "--devices", "0"], "--devices: found 0, expected 1 or more"),
        (["h200", "--devices", "999"], "--devices: found 999, but jax was started with 8"),
        (["--devices", "2"], "--devices: found 2 without their memory"),
        (["--devices", "2", "--topology", "v5p:2x2x2"], "--devices: found 2 beside the topology v5p:2x2x2"),
        (["v5p-16", "--devices", "2"], "--devices: found 2 beside the topology v5p:2x2x2"),
        (["--topology", "v5p"], "--topology: found 'v5p', expected a generation"),
        (["--memory", "0GB"], "--memory: found '0GB', expected"),
    ],
)
def test_what_no_plan_can_be_made_for_is_refused(words, said, capsys):
    assert cli.main(["plan", "quickstart", *words]) == 2
    assert said in capsys.readouterr().err


def test_without_libtpu_the_extra_is_named(monkeypatch):
    from jax.experimental import topologies

    def missing(**options):
        raise NotImplementedError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r'pip install "care-jax\[plan\]"'):
        targets.topology("v5e:2x2")


def test_a_long_compilation_shows_that_it_lives(tiny, monkeypatch):
    monkeypatch.setattr(programs, "_TICK", 0.001)
    said = []
    plan.compile_forward(plan.prepare(tiny, targets.local()), said.append)
    assert any(line.startswith("still compiling, after ") for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x2", "v6e:2x4", "7x:2x2x1"])
def test_a_topology_is_known_by_its_devices(name):
    needs_libtpu()
    assert targets.words(targets.topology(name).devices) == f"--topology {name}"


@pytest.mark.parametrize("name", ["v5:2x2", "v5p", "v5p:2", "v5p:2x2x2x2", "h100:2x2"])
def test_a_topology_is_a_generation_and_its_chips(name):
    with pytest.raises(UserError, match="--topology"):
        targets.topology(name)


def test_a_mesh_that_does_not_divide_is_refused_before_anything_is_compiled(capsys):
    status = cli.main(["plan", "quickstart", "mesh.fsdp=8", "batch.microbatch_rows=4", "--no-advice"])
    assert status == 2
    assert "batch.microbatch_rows has rows=4, which does not divide by the 8 parts" in capsys.readouterr().err


def needs_libtpu():
    try:
        targets.topology("v5e:2x2")
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_eight_billion_weights_on_tpus_as_far_as_the_prototype():
    """PERFORMANCE: 8B, float32 AdamW, rows of 1024: v5p:2x2x1 at 16k tokens a chip, v5e:8x8 at 1k; GiB a chip."""
    needs_libtpu()
    rows = ["data.max_length=1024", "batch.row_length=1024", "batch.examples=16"]
    for name, microbatch, arguments, temporaries in (("v5p:2x2x1", 64, 23, 25), ("v5e:8x8", 64, 1.5, 2.0)):
        recipe = config.load("dpo-llama3.1-8b", overrides=[*rows, f"batch.microbatch_rows={microbatch}"])
        made = plan.prepare(recipe, targets.topology(name))
        program, _ = plan.compile_train(made, lambda line: None)
        assert sum(program.held.values()) / 2**30 <= arguments
        assert program.temporaries / 2**30 <= temporaries


@pytest.mark.slow
def test_matrix_products_kept_on_the_host_take_no_device_memory(tmp_path):
    needs_libtpu()
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "num_hidden_layers": 16}))
    found = {}
    for remat in ("dots", "offload"):
        recipe = Config.from_any(
            "quickstart",
            **{"model": {"path": str(tmp_path), "dtype": "bfloat16", "remat": remat}, "batch.microbatch_rows": 64},
        )
        made = plan.prepare(recipe, targets.topology("v5e:1x1"))
        found[remat] = plan.compile_train(made, lambda line: None)[0].temporaries
    assert found["offload"] < 0.7 * found["dots"]


MEASURE = """
import ctypes, gc, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from care_jax import plan
from care_jax.config import Config
from care_jax.plan import targets

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def settled():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)

recipe = Config.from_any("quickstart", **{
    "model": {"path": sys.argv[1], "dtype": "float32", "remat": "full"},
    "batch": {"examples": 64, "row_length": 256, "microbatch_rows": 16},
})
made = plan.prepare(recipe, targets.local())
program, compiled = plan.compile_train(made, lambda line: None)
settled()
before = status("VmRSS")
def fill(x):
    return jax.device_put(np.full(x.shape, 0.01 if x.dtype == jnp.float32 else 1, x.dtype), x.sharding)
state, batch = jax.block_until_ready(jax.tree.map(fill, (made.state, made.batch)))
settled()
pathlib.Path("/proc/self/clear_refs").write_text("5")
for _ in range(2):
    state, _ = jax.block_until_ready(compiled(state, batch))
print((status("VmHWM") - before) / program.total)
"""


@pytest.mark.slow
def test_the_plans_bytes_are_those_of_a_real_run(tmp_path):
    """On this host: the peak of resident memory over two steps, in a process of its own."""
    larger = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **larger}))
    # glibc would keep what is freed for later, and count it as resident.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = os.environ | {"XLA_FLAGS": "", "NPROC": "", "JAX_PLATFORMS": "cpu"} | malloc
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_depth_costs_no_compile_time(tmp_path, request):
    """Layers are scanned: 32 compile as fast as 8."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    request.addfinalizer(lambda: jax.config.update("jax_enable_compilation_cache", before))
    seconds = {}
    for layers in (8, 32):
        (tmp_path / "config.json").write_text(json.dumps({**TINY, "num_hidden_layers": layers}))
        recipe = Config.from_any("quickstart", **{"model.path": str(tmp_path)})
        made = plan.prepare(recipe, targets.local(memory=10**9))
        seconds[layers] = plan.compile_train(made, lambda line: None)[0].compile_seconds
    assert seconds[32] <= 1.3 * seconds[8]


def test_a_run_out_of_memory_is_told_what_fits(tiny, monkeypatch, capsys):
    from care_jax.training import loop

    def train(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.\nmore")

    def planned(config, target, say):
        program = plan.Program("train", {"parameters": 2 * 10**9}, 0, None, 0, {}, 0.0)
        less = dataclasses.replace(program, held={"parameters": 10**9})
        found = plan.Advice(("batch.microbatch_rows=2",), less, 1)
        target = dataclasses.replace(target, memory=2 * 10**9)
        return plan.Plan(config, target, {"fsdp": 8}, 2, 4, 256, (program,), found)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(plan, "plan", planned)
    assert cli.main(["train", "quickstart"]) == 1
    said = capsys.readouterr().err
    assert "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes." in said
    assert "does not fit: 1.86 of 1.86 GiB, 100 % (train)" in said
    assert "the nearest change that fits: batch.microbatch_rows=2" in said
