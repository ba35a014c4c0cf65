"""The programs of a run, compiled ahead of time from shapes: what each device holds, does and sends."""

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from care_jax import hardware, sharding
from care_jax.plan import flops, hlo
from care_jax.plan.shapes import Shapes
from care_jax.training import placing
from care_jax.training.errors import out_of_memory
from care_jax.training.state import train_program
from care_jax.training.step import make_logps


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program; bytes are a device's.

    held: by name, what the run holds while it runs, in its arguments or beside them. temporaries: what the
    compiler needs beside them at its peak, with what pads the arguments; None where the compiler itself
    said that the memory does not suffice: `needed` is then its figure for all. flops: of one call on all devices.
    """

    name: str
    held: dict[str, int]
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
        return sum(self.held.values()) + self.temporaries


# How libtpu says that memory does not suffice: with a figure for all, or for what comes beside the arguments.
_USED = re.compile(r"[Uu]sed (\d+(?:\.\d+)?)([KMGT]?) of ")
_BESIDE = re.compile(r"required for HLO temporaries \((\d+(?:\.\d+)?)([KMGT]?)\)")
_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_TICK = 30.0  # seconds between two signs of life of a compilation


@contextlib.contextmanager
def _ticking(say: Callable[[str], None]) -> Iterator[None]:
    """Says every now and then how long the work inside has taken."""
    done, began = threading.Event(), time.perf_counter()

    def tick() -> None:
        while not done.wait(_TICK):
            say(f"still compiling, after {time.perf_counter() - began:.0f} s")

    teller = threading.Thread(target=tick, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _compile(
    name: str,
    jitted: Any,
    arguments: tuple[Any, ...],
    held: dict[str, int],
    trips: int,
    shapes: Shapes,
    say: Callable[[str], None],
) -> tuple[Program, Any]:
    # A CPU multiplies no bfloat16: its compiler would hold all layers' weights in float32, which no other does.
    without = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
    options = without if shapes.absent and hardware.platform() == "cpu" else None
    began = time.perf_counter()
    traced = jitted.trace(*arguments)
    operations = flops.count(traced.jaxpr, trips)
    lowered = traced.lower()
    try:
        with _ticking(say):
            compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        beside = _BESIDE.search(str(error))
        found = beside or _USED.search(str(error))
        if not out_of_memory(error) or found is None:
            raise
        needed = int(float(found[1]) * _UNIT[found[2]]) + (0 if beside is None else sum(held.values()))
        return Program(name, held, None, needed, operations, {}, time.perf_counter() - began), None
    seconds = time.perf_counter() - began
    # Small dimensions are padded on TPUs.
    padding = compiled.memory_analysis().argument_size_in_bytes - placing.bytes_per_device(arguments)
    program = Program(
        name,
        held,
        placing.bytes_beside_arguments(compiled) + padding,
        None,
        operations,
        hlo.collectives(compiled.as_text()),
        seconds,
    )
    return program, compiled


def compile_train(shapes: Shapes, say: Callable[[str], None]) -> tuple[Program, Any]:
    """The train step and its executable (None where the memory does not suffice)."""
    say("compiling the train step")
    jitted = train_program(
        shapes.config,
        shapes.objective,
        shapes.model,
        shapes.optimizer,
        (shapes.state_shardings, shapes.batch_shardings),
    )
    held = {**held_by_state(shapes), "batch": placing.bytes_per_device(shapes.batch)}
    with jax.set_mesh(shapes.mesh):
        return _compile("train", jitted, (shapes.state, shapes.batch), held, shapes.layout.microbatches, shapes, say)


def compile_forward(shapes: Shapes, say: Callable[[str], None]) -> list[Program]:
    """The pass without a gradient, as the reference's and as the evaluation's."""
    state = shapes.state
    say("compiling the pass of the reference and of the evaluation")
    jitted = jax.jit(make_logps(shapes.model), out_shardings=sharding.replicated(shapes.mesh))
    everything = held_by_state(shapes) | {"batch": placing.bytes_per_device(shapes.forward_batch)}
    with jax.set_mesh(shapes.mesh):
        arguments = state.variables(), shapes.forward_batch
        evaluation, _ = _compile("evaluation", jitted, arguments, everything, 1, shapes, say)
    if not shapes.objective.needs_ref:
        return [evaluation]
    held = dict(everything)
    if shapes.config.reference.mode == "precompute":  # before the optimizer's state is there
        held["optimizer"] = 0
        if shapes.config.reference.path is not None:  # another model than the start, beside it
            held["reference"] = placing.bytes_per_device(state.params)
    return [dataclasses.replace(evaluation, name="reference", held=held), evaluation]


def held_by_state(shapes: Shapes) -> dict[str, int]:
    """Bytes a device of what a run holds from its first step to its last."""
    state = shapes.state
    found = {
        "parameters": placing.bytes_per_device(state.params),
        "optimizer": placing.bytes_per_device(state.opt_state),
    }
    if state.lora is not None:
        found["adapters"] = placing.bytes_per_device(state.lora)
    if shapes.objective.needs_ref and shapes.config.reference.mode == "online":
        found["reference"] = found["parameters"]
    return found


def least(shapes: Shapes) -> int:
    """Bytes a device that the train step needs whatever the compiler does: state, batch, gradients."""
    gradients = placing.bytes_per_device(shapes.state.trainable())
    width = {"float32": 4, "bfloat16": 2}
    if shapes.layout.microbatches > 1:
        kept = width[shapes.config.optimizer.accumulate_dtype] / width[shapes.config.model.param_dtype]
        gradients = int(gradients * kept) if shapes.state.lora is None else gradients
    return sum(held_by_state(shapes).values()) + placing.bytes_per_device(shapes.batch) + gradients
