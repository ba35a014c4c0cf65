"""The programs of a run, compiled ahead of time from shapes: what each device holds, computes and sends."""

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp

from care_jax import hardware, sharding
from care_jax.plan import flops, hlo
from care_jax.plan.shapes import Shapes
from care_jax.training.errors import out_of_memory
from care_jax.training.placement import bytes_per_device, program_bytes
from care_jax.training.state import jit_step
from care_jax.training.step import make_logps

Say: TypeAlias = Callable[[str], None]  # prints one line of progress
Compiled: TypeAlias = jax.stages.Compiled


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program; all bytes are per device.

    array_bytes: by name, what the run holds while the program runs, whether it is an argument or not.
    temporaries: what the program needs besides at its peak, padding of the arguments included; None if the compiler
    refused for lack of memory. needed: in that case the compiler's figure for everything.
    flops: per call, over all devices.
    """

    name: str
    array_bytes: dict[str, int]
    temporaries: int | None
    needed: int | None
    flops: int
    collectives: dict[str, hlo.Traffic]
    compile_seconds: float

    @property
    def total(self) -> int:
        if self.temporaries is None:
            assert self.needed is not None
            return self.needed
        return sum(self.array_bytes.values()) + self.temporaries


def compile_train(shapes: Shapes, say: Say) -> tuple[Program, Compiled | None]:
    """Compiles the train step; the executable is None if the memory does not suffice."""
    say("compiling the train step")
    jitted = jit_step(shapes.config, shapes.objective, shapes.setup, shapes.state_shardings, shapes.batch_shardings)
    array_bytes = {**state_bytes(shapes), "batch": bytes_per_device(shapes.batch)}
    with jax.set_mesh(shapes.mesh), _report_progress(say):
        arguments = shapes.state, shapes.batch
        return _compile("train", jitted, arguments, array_bytes, shapes, shapes.batch_shape.microbatches)


def compile_forward(shapes: Shapes, say: Say) -> list[Program]:
    """Compiles the pass without a gradient: as the reference's (if the loss needs one) and as the evaluation's."""
    state = shapes.state
    say("compiling the pass of the reference and of the evaluation")
    jitted = jax.jit(make_logps(shapes.setup.model), out_shardings=sharding.replicated(shapes.mesh))
    with_optimizer = state_bytes(shapes) | {"batch": bytes_per_device(shapes.forward_batch)}
    with jax.set_mesh(shapes.mesh), _report_progress(say):
        arguments = state.variables(), shapes.forward_batch
        evaluation, _ = _compile("evaluation", jitted, arguments, with_optimizer, shapes)
    if not shapes.objective.needs_ref:
        return [evaluation]
    array_bytes = dict(with_optimizer)
    if shapes.config.reference.mode == "precompute":  # before the optimizer's state exists
        array_bytes["optimizer"] = 0
        if shapes.config.reference.path is not None:  # a model other than the start, beside it
            array_bytes["reference"] = bytes_per_device(state.params)
    return [dataclasses.replace(evaluation, name="reference", array_bytes=array_bytes), evaluation]


def state_bytes(shapes: Shapes) -> dict[str, int]:
    """Returns the bytes per device of what a run holds from its first step to its last."""
    state = shapes.state
    array_bytes = {"parameters": bytes_per_device(state.params), "optimizer": bytes_per_device(state.opt_state)}
    if state.lora is not None:
        array_bytes["adapters"] = bytes_per_device(state.lora)
    if shapes.objective.needs_ref and shapes.config.reference.mode == "online":
        array_bytes["reference"] = array_bytes["parameters"]
    return array_bytes


def smallest_need(shapes: Shapes) -> int:
    """Returns the bytes per device that the train step needs however it is compiled: state, batch and gradients."""
    config, gradients = shapes.config, bytes_per_device(shapes.state.trainable())
    if shapes.batch_shape.microbatches > 1 and shapes.state.lora is None:
        dtypes = jnp.dtype(config.optimizer.accumulate_dtype), jnp.dtype(config.model.param_dtype)
        gradients = int(gradients * (dtypes[0].itemsize / dtypes[1].itemsize))
    return sum(state_bytes(shapes).values()) + bytes_per_device(shapes.batch) + gradients


# libtpu reports that memory does not suffice with a figure for everything, or for what it needs beside the arguments.
_USED = re.compile(r"[Uu]sed (\d+(?:\.\d+)?)([KMGT]?) of ")
_BESIDE = re.compile(r"required for HLO temporaries \((\d+(?:\.\d+)?)([KMGT]?)\)")
_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _compile(
    name: str,
    jitted: jax.stages.Wrapped,
    arguments: tuple[object, ...],
    array_bytes: dict[str, int],
    shapes: Shapes,
    unknown_trips: int = 1,
) -> tuple[Program, Compiled | None]:
    # A CPU does not multiply bfloat16: its compiler would hold all weights in float32, which no other device does.
    on_cpu = shapes.absent and hardware.platform() == "cpu"
    options = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"} if on_cpu else None
    began = time.perf_counter()
    traced = jitted.trace(*arguments)
    operations = flops.count(traced.jaxpr, unknown_trips)
    lowered = traced.lower()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        beside = _BESIDE.search(str(error))
        figure = beside or _USED.search(str(error))
        if not out_of_memory(error) or figure is None:
            raise
        needed = int(float(figure[1]) * _UNIT[figure[2]]) + (0 if beside is None else sum(array_bytes.values()))
        return Program(name, array_bytes, None, needed, operations, {}, time.perf_counter() - began), None
    seconds = time.perf_counter() - began
    # TPUs pad small dimensions.
    padding = compiled.memory_analysis().argument_size_in_bytes - bytes_per_device(arguments)
    temporaries, collectives = program_bytes(compiled) + padding, hlo.collectives(compiled.as_text())
    return Program(name, array_bytes, temporaries, None, operations, collectives, seconds), compiled


_TICK = 30.0  # seconds between two lines of progress


@contextlib.contextmanager
def _report_progress(say: Say) -> Iterator[None]:
    """Prints every `_TICK` seconds how long the compilation inside the `with` block has taken."""
    done, began = threading.Event(), time.perf_counter()

    def tick() -> None:
        while not done.wait(_TICK):
            say(f"still compiling, after {time.perf_counter() - began:.0f} s")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
