"""The head: memory and time of log-probabilities in chunks against a log-softmax over all logits.

    python benchmarks/head.py                                   # on this machine: seconds, peak, error
    python benchmarks/head.py --aot v5p:2x2x1                   # compiled for TPU v5p, which need not be here

Measures the value and the gradient with respect to hidden states and head. `--aot` needs the `tpu` extra (libtpu
compiles without a TPU; one process at a time). It compiles for 8,192 tokens per chip, width 4,096, bfloat16 and
vocabularies of 152k and 256k: `full` is the log-softmax on one chip, `chunked` ours on one chip, `fsdp 4` ours with the
head sharded over four chips (8,192 tokens on each), `tensor 4` ours with the vocabulary split over four chips (the same
tokens on each), `frozen` ours without a gradient of the head.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from care_jax.logps import completion_logps
from care_jax.plan.targets import topology
from care_jax.sharding import make_mesh


def full(hidden: Any, head: Any, targets: Any) -> Any:
    """The usual way: all logits in float32, and their log-softmax."""
    logits = jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=jnp.float32)
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[:, None], axis=-1)[:, 0]


def gradient(logps: Callable[..., Any], frozen: bool = False) -> Callable[..., Any]:
    """Returns (hidden, head, targets, coefficients) -> (value, gradients); the coefficients weigh each token's logp."""

    def loss(hidden: Any, head: Any, targets: Any, coefficients: Any) -> Any:
        return jnp.sum(logps(hidden, head, targets) * coefficients)

    return jax.value_and_grad(loss, argnums=0 if frozen else (0, 1))


def inputs(count: int, width: int, vocabulary: int, dtype: Any, seed: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (count, width), dtype)
    head = (0.02 * jax.random.normal(keys[1], (vocabulary, width))).astype(dtype)
    targets = jax.random.randint(keys[2], (count,), 0, vocabulary)
    return hidden, head, targets, jax.random.normal(keys[3], (count,))


def here(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    count, width, vocabularies = (256, 32, [512]) if arguments.quick else (1024, 256, [32768, 262144])
    results: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for vocabulary in vocabularies:
        operands = inputs(count, width, vocabulary, jnp.float32, arguments.seed)
        programs = {
            f"full, V={vocabulary}": jax.jit(gradient(full)),
            f"chunked, V={vocabulary}": jax.jit(gradient(functools.partial(completion_logps, chunk=arguments.chunk))),
        }
        values, cases = {}, []
        for name, program in programs.items():
            began = time.perf_counter()
            compiled = program.lower(*operands).compile()
            facts = {
                "compile_seconds": time.perf_counter() - began,
                "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
            }
            value, grads = jax.tree.map(np.asarray, compiled(*operands))
            values[name] = grads

            def run(compiled: Any = compiled, operands: Any = operands) -> float:
                return float(jax.block_until_ready(compiled(*operands))[0])

            cases.append(harness.Case(name, run, facts, None, float(value)))
        measured = harness.measure(cases, arguments.rounds)
        full_name, ours = programs
        measured[ours]["gradient_error"] = harness.relative_error(values[ours], values[full_name])
        results |= measured
        ratios |= harness.ratios_of(measured, ours, [full_name])
        ratios[f"temporaries {full_name} / {ours}"] = measured[full_name]["temp_bytes"] / measured[ours]["temp_bytes"]
    return {"tokens": count, "width": width, "dtype": "float32", "chunk": arguments.chunk}, results, ratios


def aot(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu asks a cloud for minutes what machine this is
    devices = topology(arguments.aot).devices
    count, width = (512, 256) if arguments.quick else (8192, 4096)
    results: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for vocabulary in (4096,) if arguments.quick else (151936, 256000):
        ours = functools.partial(completion_logps, chunk=arguments.chunk)
        frozen = functools.partial(ours, frozen_head=True)
        variants = {
            "full": (1, 1, full, False),
            "full, fsdp 4": (4, 1, full, False),
            "chunked": (1, 1, ours, False),
            "frozen": (1, 1, frozen, True),
            "fsdp 4": (4, 1, ours, False),
            "tensor 4": (1, 4, ours, False),
        }
        temp = {}
        for name, (fsdp, tensor, logps, is_frozen) in variants.items():
            mesh = make_mesh(1, fsdp, tensor, devices=devices[: fsdp * tensor])

            def spec(shape: tuple[int, ...], dtype: Any, *axes: Any, mesh: Any = mesh) -> jax.ShapeDtypeStruct:
                return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

            tokens = count * fsdp
            rows, vocabulary_axis = ("fsdp",) if fsdp > 1 else (None,), "tensor" if tensor > 1 else None
            head = spec((vocabulary, width), jnp.bfloat16, vocabulary_axis, "fsdp" if fsdp > 1 else None)
            operands = (
                spec((tokens, width), jnp.bfloat16, *rows),
                head,
                spec((tokens,), jnp.int32, *rows),
                spec((tokens,), jnp.float32, *rows),
            )
            began = time.perf_counter()
            with jax.set_mesh(mesh):
                out = (None, operands[0].sharding) if is_frozen else (None, (operands[0].sharding, head.sharding))
                program = jax.jit(gradient(logps, is_frozen), out_shardings=out)
                compiled = program.lower(*operands).compile()
            temp[name] = compiled.memory_analysis().temp_size_in_bytes
            results[f"{name}, V={vocabulary}"] = {
                "temp_bytes": temp[name],
                "compile_seconds": time.perf_counter() - began,
            }
        for name in ("chunked", "frozen", "fsdp 4", "tensor 4"):
            ratios[f"temporaries full / {name}, V={vocabulary}"] = temp["full"] / temp[name]
        ratios[f"temporaries full, fsdp 4 / fsdp 4, V={vocabulary}"] = temp["full, fsdp 4"] / temp["fsdp 4"]
    shapes = {"tokens per chip": count, "width": width, "dtype": "bfloat16", "target": arguments.aot}
    return shapes | {"chunk": arguments.chunk}, results, ratios


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--aot", metavar="TOPOLOGY", help="such as v5p:2x2x1: compile for it, do not run")
    parser.add_argument("--chunk", type=int, default=1024)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 2
    shapes, results, ratios = (aot if arguments.aot else here)(arguments)
    harness.record("head_aot" if arguments.aot else "head", arguments, shapes, results, ratios)


if __name__ == "__main__":
    main()
