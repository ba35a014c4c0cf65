"""The step of a run is one program: compiled once, without the reference's weights, without implicit transfers."""

import logging
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import care_jax
from care_jax import logps, losses, sharding
from care_jax.training import loop, placement
from care_jax.training.step import init_state, make_step
from tests.training.batches import groups, plain_batch, tiny_model


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("data", ["sample", pytest.param("care_rated.jsonl", marks=pytest.mark.slow)])
def test_a_run_compiles_its_step_once(data, tmp_path, monkeypatch, caplog, request):
    """One epoch of steps that are filled differently, under the transfer guard."""
    source = {"reader": "care", "path": "sample", "cultures": ["chinese"], "limit": {"pairs": 64}}
    if data != "sample":
        source = {"reader": "care", "path": str(request.getfixturevalue("shared") / "data" / data)}
    programs, compile_step = [], loop.compile_step

    def kept(*arguments):
        program, seconds = compile_step(*arguments)
        programs.append(program)
        return program, seconds

    def guarded(function):
        def run(*arguments):
            with jax.transfer_guard("disallow"):
                return function(*arguments)

        return run

    monkeypatch.setattr(loop, "compile_step", guarded(kept))
    for name in ("BatchSupply", "take_steps"):
        monkeypatch.setattr(loop, name, guarded(getattr(loop, name)))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        made = care_jax.train(
            "quickstart",
            **{
                "output_dir": str(tmp_path / "run"),
                "data.train": [source],
                "data.eval": [],
                "data.epochs": 1,
                "data.max_length": 128,
                "batch.unit": "pair" if data == "sample" else "group",
                "batch.row_length": 128 if data == "sample" else 256,
                "batch.examples": 16 if data == "sample" else 64,
                "trackers": [],
                "checkpoint.every": None,
            },
        )
    steps = [line for line in made.metrics if "loss" in line]
    assert len(steps) > 3
    assert len({line["packing_efficiency"] for line in steps}) > 1
    compiled = re.findall(r"Compiling jit\((\w+)\) with", caplog.text)
    assert compiled.count("step") == 1
    # Its arguments: weights and two moments of each, and the batch. No second model.
    (program,) = programs
    weights = sorted(leaf.shape for leaf in jax.tree.leaves(made.params) if leaf.ndim > 1)
    arguments = [leaf for leaf in jax.tree.leaves(program.in_avals) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sorted(leaf.shape for leaf in arguments if leaf.shape in set(weights)) == sorted(weights * 3)


def test_the_guard_sees_what_is_not_placed():
    program, batch = jax.jit(lambda batch: jnp.sum(batch.lengths)), plain_batch([groups(2)])
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    placed = placement.to_devices(batch, placement.batch_shardings(batch, mesh), batch.tokens.shape[1])
    with jax.transfer_guard("disallow"):
        program(placed)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            program(batch)


def lowered(folder, layers, vocabulary=64, rate=1e-3, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    model, params = tiny_model(folder, num_hidden_layers=layers, vocab_size=vocabulary, **changes)
    optimizer = optax.adam(rate)
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), plain_batch([groups(2), groups(2)]))
    return jax.jit(make_step(model, losses.dpo, optimizer), donate_argnums=0).lower(shapes, batch)


def test_the_program_does_not_grow_with_depth(tmp_path):
    few, many = (lowered(tmp_path / str(n), n).as_text().count("\n") for n in (2, 32))
    assert many <= 1.02 * few


@pytest.mark.slow  # compiles two programs at full optimization
def test_memory_grows_with_the_vocabulary_by_the_head_alone(tmp_path, monkeypatch):
    """From 32k to 256k: temporaries grow by no more than the head and its gradient do."""
    monkeypatch.setattr(logps, "_CPU_COLUMNS", 64)  # few tokens: both vocabularies are computed in tiles nevertheless
    temporary, width = {}, 32
    for vocabulary in (32768, 262144):
        found = lowered(tmp_path / str(vocabulary), 2, vocabulary, tie_word_embeddings=True).compile().memory_analysis()
        temporary[vocabulary] = found.temp_size_in_bytes
    head = (262144 - 32768) * width * 4
    assert temporary[262144] - temporary[32768] <= 2 * head


@pytest.mark.slow  # a timing
def test_compile_time_does_not_grow_with_depth(tmp_path):
    seconds: dict[int, list[float]] = {2: [], 32: []}
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        for number in range(3):
            for layers in seconds:
                # Another constant each time, so that no compiled program is reused.
                program = lowered(tmp_path / f"{layers}-{number}", layers, rate=1e-3 * (number + 1))
                began = time.perf_counter()
                program.compile()
                seconds[layers].append(time.perf_counter() - began)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    print(f"compiled in {seconds} s")
    assert min(seconds[32]) <= 1.2 * min(seconds[2])
