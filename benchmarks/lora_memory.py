"""Memory of a DPO step: adapters on a bfloat16 base against full training, each in its own process.

    python benchmarks/lora_memory.py --model SMOLLM2_FOLDER [--rows 2] [--row-length 256]

The library's own step on random tokens, two responses per question. `compiled` is what XLA plans to hold (arguments,
temporaries, and outputs that are not donated arguments). `peak` is the largest resident memory of the process, less
that before the model was loaded. Both are in bytes, of one step that was run.
"""

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from care_jax import losses, models
from care_jax.config import Config
from care_jax.data import corpus, pipeline
from care_jax.data.chat import Encoded
from care_jax.data.packing import plans
from care_jax.data.preferences import Unit
from care_jax.data.questions import Question, Response
from care_jax.models import lora
from care_jax.training.optimizer import make_optimizer, make_schedule
from care_jax.training.step import init_state, make_step


def batch_of(rows: int, length: int, vocabulary: int) -> Any:
    """Full rows: each has a question of half a row and two responses of a quarter row each."""
    rng = np.random.default_rng(0)
    questions, encodings = [], []
    for number in range(rows):
        ids = [rng.integers(3, vocabulary, size).tolist() for size in (length // 2, length // 4, length // 4)]
        responses = tuple(Response(tuple(part), rating, "", number) for part, rating in zip(ids[1:], (1.0, 0.0)))
        questions.append(Question(tuple(ids[0]), responses, str(number)))
        encodings.append(Encoded(ids[0], ids[1:]))
    built = corpus.build(questions, encodings, length)
    units = [Unit(number, (0, 1), ((0, 1),)) for number in range(rows)]
    shape = pipeline.batch_shape(units, built, pipeline.BatchShape(rows, length))
    return pipeline.fill(plans.plan_step(units, built, shape), built)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(arguments: argparse.Namespace) -> dict[str, int]:
    """One step in this process."""
    jnp.zeros(1).block_until_ready()
    before = peak()
    adapted = arguments.measure == "lora"
    folder = models.resolve(arguments.model)
    param_dtype = "bfloat16" if adapted else "float32"
    model, params = models.from_pretrained(folder, "float32", param_dtype=param_dtype, remat="full")
    adapters, decay = None, models.decay_mask(model.arch)
    if adapted:
        model, adapters, decay = lora.attach(model, 16, 32.0), lora.init(model, 16), None
    optimizer_config = Config.from_any({"model": {"path": "sample"}, "data": {"train": [{"path": "sample"}]}}).optimizer
    optimizer = make_optimizer(optimizer_config, make_schedule(optimizer_config, 1), decay)
    batch = jax.tree.map(jnp.asarray, batch_of(arguments.rows, arguments.row_length, model.arch.vocab_size))
    state = jax.jit(lambda p, a: init_state(p, optimizer, a), donate_argnums=(0, 1))(params, adapters)
    del params, adapters
    step = jax.jit(make_step(model, [(losses.bind("dpo"), 1.0)], optimizer), donate_argnums=0)
    compiled = step.lower(state, batch).compile()
    plan: Any = compiled.memory_analysis()
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    outputs = max(0, plan.output_size_in_bytes - plan.alias_size_in_bytes)
    return {"compiled": plan.argument_size_in_bytes + plan.temp_size_in_bytes + outputs, "peak": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or hub id")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--row-length", type=int, default=256)
    parser.add_argument("--measure", choices=("full", "lora"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    measured: dict[str, dict[str, int]] = {}
    for which in ("full", "lora"):
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", which]
        measured[which] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        shown = ", ".join(f"{name} {value / 1e6:,.0f} MB" for name, value in measured[which].items())
        print(f"{which}: {shown}", flush=True)
    for name in ("compiled", "peak"):
        ratio = measured["lora"][name] / measured["full"][name]
        print(f"{name}: adapters hold {ratio:.3f} of full training ({'below' if ratio < 0.5 else 'NOT below'} half)")


if __name__ == "__main__":
    main()
