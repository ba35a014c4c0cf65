"""Shared by the benchmarks: random questions, the modes of a step, interleaved timing, the printed and stored record.

A benchmark builds `Case`s, each one optimizer step in some mode, and passes them to `measure`. In every round each case
runs once, so that other load on the machine affects all of them. Ratios are of medians within one run.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from care_jax import losses, models
from care_jax.data import pipeline
from care_jax.data.chat import Encoded
from care_jax.data.corpus import Corpus, build
from care_jax.data.packing.batch import Batch
from care_jax.data.packing.plans import StepPlan, plan_step
from care_jax.data.preferences import Unit, make_units
from care_jax.data.questions import Question, Response
from care_jax.errors import UserError
from care_jax.training.step import init_state, make_logps, make_step

RESULTS = pathlib.Path(__file__).parent / "results"
# AdamW on every side; the learning rate is small, so that the weights hardly change between rounds.
B1, B2, RATE = 0.9, 0.999, 1e-6
BETA = 0.1


# --- the command -----------------------------------------------------------------------------------------------------


def parser(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few rounds, only to show that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=pathlib.Path, help="file of the record (default: benchmarks/results/NAME.json)")
    return parser


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a Qwen 2 model; its head is tied, as in the small models of the family."""

    vocabulary: int = 32768
    layers: int = 6
    width: int = 256
    mlp: int = 1024
    heads: int = 4
    kv_heads: int = 2

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        }


QUICK = Sizes(vocabulary=512, layers=2, width=32, mlp=64)


def make_model(folder: pathlib.Path, sizes: Sizes, remat: str = "none", **changes: Any) -> Any:
    """The model of a config.json written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(sizes.config() | changes))
    return models.from_config(folder, dtype="float32", remat=remat)


# --- random questions ----------------------------------------------------------------------------------------------


def corpus_of(parts: Sequence[tuple[list[int], list[list[int]], list[float]]], max_length: int) -> Corpus:
    """A corpus from (prompt ids, ids of the completions, ratings) of each question."""
    questions, encodings = [], []
    for number, (prompt, completions, ratings) in enumerate(parts):
        responses = tuple(Response(tuple(ids), rating, "", number) for ids, rating in zip(completions, ratings))
        questions.append(Question(tuple(prompt), responses, str(number)))
        encodings.append(Encoded(prompt, completions))
    return build(questions, encodings, max_length)


def care_like(seed: int, questions: int, responses: int, vocabulary: int, scale: float = 1.0) -> Corpus:
    """Questions of CARE's lengths: prompts of 20 to 60 tokens, responses lognormal around 110, clipped to 20..256.

    Ratings are 1 to 10, normal around 6, so that a seventh of the pairs is tied; two responses of a question are never
    tied. scale: factor of the lengths.
    """
    rng = np.random.default_rng(seed)

    def ids(size: float) -> list[int]:
        return rng.integers(3, vocabulary, max(2, round(size * scale))).tolist()

    parts = []
    for _ in range(questions):
        ratings = np.clip(np.rint(rng.normal(6, 2, responses)), 1, 10).tolist() if responses > 2 else [1.0, 2.0]
        lengths = np.clip(rng.lognormal(np.log(98), 0.5, responses), 20, 256)
        parts.append((ids(rng.integers(20, 60)), [ids(length) for length in lengths], ratings))
    return corpus_of(parts, 316)


def all_pairs(corpus: Corpus) -> list[Unit]:
    return make_units(corpus.questions, "pairs", policy="all", unit="group")


def count_pairs(units: Sequence[Unit]) -> int:
    return sum(len(unit.pairs) for unit in units)


# --- modes of a step -------------------------------------------------------------------------------------------------


def longest(corpus: Corpus, multiple: int = 8) -> int:
    """Tokens of the longest prompt with one of its responses, rounded up."""
    tokens = max(
        int(corpus.prompt_lengths[q]) + corpus.length(q, corpus.response_id(q, r))
        for q in range(len(corpus))
        for r in range(len(corpus.questions[q].responses))
    )
    return -(-tokens // multiple) * multiple


def planned(units: Sequence[Unit], corpus: Corpus, rows: int, row_length: int, **switches: bool) -> StepPlan:
    """The plan of one step in a mode of `batch.*`, with the shape that a run would choose."""
    shape = pipeline.batch_shape(units, corpus, pipeline.BatchShape(rows, row_length, **switches))
    plan = plan_step(units, corpus, shape)
    return dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, microbatches=plan.count))


def exact(plan: StepPlan) -> StepPlan:
    """The same plan with capacity for exactly the completion tokens of this step, as in a run of equal steps."""
    most = int(np.bincount(plan.responses.microbatch, weights=plan.responses.length).max())
    return dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, completions=-(-most // 64) * 64))


def grouped(units: Sequence[Unit], corpus: Corpus, sizes: Any, slots: int = 4096) -> StepPlan:
    """The plan with everything shared and packed, in the rows and row length that need the fewest operations.

    sizes: an `Arch` or `Sizes`, to count operations. slots: most token slots of a microbatch that memory allows.
    """
    shortest = longest(corpus)  # of the row lengths that are tried
    best, cost = None, float("inf")
    for rows in range(1, 17):
        for length in range(-(-shortest // 32) * 32, max(2 * shortest, 544), 32):
            if rows * length > slots:
                break
            try:
                plan = exact(planned(units, corpus, rows, length))
            except UserError:  # a question needs more rows
                continue
            its_cost = operations(plan, sizes) + 1e9 * plan.count  # each microbatch reads and writes the gradient
            if its_cost < cost:
                best, cost = plan, its_cost
    if best is None:
        raise SystemExit(f"a question needs more than {slots} token slots")
    return best


def operations(plan: StepPlan, sizes: Any) -> float:
    """Floating point operations of a step: three passes through the layers, four through the head (one recomputed)."""
    if isinstance(sizes, Sizes):
        hidden, head_dim, vocabulary = sizes.width, sizes.width // sizes.heads, sizes.vocabulary
    else:
        hidden, head_dim, vocabulary = sizes.hidden, sizes.head_dim, sizes.vocab_size
    projections = 2 * hidden * head_dim * (sizes.heads + sizes.kv_heads) + 3 * hidden * sizes.mlp
    attention = 2 * plan.shape.row_length * sizes.heads * head_dim
    slots = plan.count * plan.shape.rows * plan.shape.row_length
    head = 8 * plan.count * plan.shape.completions * vocabulary * hidden
    return 6 * slots * sizes.layers * (projections + attention) + head


EXPANDED = {"packing": False, "share_responses": False, "share_prompts": False}


def optimizer() -> optax.GradientTransformation:
    return optax.adamw(RATE, b1=B1, b2=B2, weight_decay=0.0)


@dataclasses.dataclass
class Case:
    """One way to run a step. run: runs it and returns the loss. facts: printed beside the times."""

    name: str
    run: Callable[[], float]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    gradient: Any = None  # of the first step, with the initial weights
    loss: float = float("nan")


def first_moment(opt_state: Any) -> Any:
    """The gradient of the first step, without another program: AdamW's first moment is (1 - b1) times the gradient."""
    moment = next(
        part.mu for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    return jax.tree.map(lambda x: np.asarray(x) / np.float32(1 - B1), moment)


def step_case(name: str, program: Any, state: Any, inputs: Sequence[Any], facts: dict[str, Any]) -> Case:
    """A case of a jitted (state, *inputs) -> (state, metrics) that donates its state; compiles it and runs it once."""
    began = time.perf_counter()
    compiled = program.lower(state, *inputs).compile()
    compiling = time.perf_counter() - began
    plan = compiled.memory_analysis()
    current = [jax.tree.map(jnp.copy, state)]
    facts = facts | {"compile_seconds": compiling, "temp_bytes": plan.temp_size_in_bytes}

    def run() -> float:
        current[0], metrics = compiled(current[0], *inputs)
        return float(jax.block_until_ready(metrics)["loss"])

    loss = run()
    return Case(name, run, facts, first_moment(current[0].opt_state), loss)


def facts_of(plan: StepPlan) -> dict[str, Any]:
    return {
        "tokens": plan.tokens,
        "token_slots": plan.count * plan.shape.rows * plan.shape.row_length,
        "fill": plan.efficiency,
        "microbatches": plan.count,
        "rows": plan.shape.rows,
        "row_length": plan.shape.row_length,
    }


def library_cases(
    name: str, model: Any, params: Any, reference: Any, plan: StepPlan, corpus: Corpus, loss: Any = None
) -> tuple[Case, Case]:
    """The library's own step on a plan with the reference precomputed, and the reference pass over the same batch.

    An online reference adds that pass to every step.
    """
    batch = jax.tree.map(jnp.asarray, pipeline.fill(plan, corpus))
    logps = jax.jit(make_logps(model))

    def reference_pass() -> float:
        return float(jax.block_until_ready(logps({"params": reference}, batch))[0, 0])

    batch_with = dataclasses.replace(batch, ref_logps=logps({"params": reference}, batch))
    step = make_step(model, losses.bind("dpo", beta=BETA) if loss is None else loss, optimizer())
    program = jax.jit(step, donate_argnums=0)
    case = step_case(name, program, init_state(params, optimizer()), (batch_with,), facts_of(plan))
    return case, Case(f"{name}: reference pass", reference_pass)


def naive_cases(
    name: str, model: Any, params: Any, reference: Any, plan: StepPlan, corpus: Corpus
) -> tuple[Case, Case]:
    """The usual step: both sequences of every pair in padded rows of their own, log-softmax over all logits.

    plan: an expanded one, with rows of the longest sequence. Returns the step with the reference precomputed, and the
    reference pass alone.
    """
    batch = jax.tree.map(jnp.asarray, pipeline.fill(plan, corpus))
    count, total, slots = plan.count, jnp.sum(batch.pair_weights), plan.shape.responses

    def logps(weights: Any, microbatch: Batch) -> jax.Array:
        tokens = microbatch.tokens
        logits = model.apply({"params": weights}, tokens, microbatch.positions, microbatch.segment_ids)[:, :-1]
        scores = jax.nn.log_softmax(logits, axis=-1)
        token_logps = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
        completed = microbatch.completion_slots < slots
        mask = jnp.zeros(tokens.size, bool).at[microbatch.completion_positions].max(completed)
        return jnp.sum(token_logps * mask.reshape(tokens.shape)[:, 1:], axis=-1)

    def microbatch_at(index: jax.Array) -> Batch:
        arrays = dataclasses.replace(batch, n_microbatches=None)
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), arrays)

    def loss_share(weights: Any, microbatch: Batch, ref: jax.Array) -> jax.Array:
        ratios = logps(weights, microbatch) - ref
        margins = ratios[microbatch.pairs[:, 0]] - ratios[microbatch.pairs[:, 1]]
        return jnp.sum(microbatch.pair_weights * -jax.nn.log_sigmoid(BETA * margins)) / total

    rule = optimizer()
    all_logps = jax.jit(lambda weights: jax.lax.map(lambda i: logps(weights, microbatch_at(i)), jnp.arange(count)))

    def step(state: Any, ref_logps: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        def body(index: jax.Array, carry: Any) -> Any:
            value, gradient = jax.value_and_grad(loss_share)(state.params, microbatch_at(index), ref_logps[index])
            return carry[0] + value, jax.tree.map(jnp.add, carry[1], gradient)

        start = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)
        loss, gradient = jax.lax.fori_loop(0, count, body, start)
        updates, opt_state = rule.update(gradient, state.opt_state, state.params)
        after = state.with_trainable(optax.apply_updates(state.params, updates), opt_state=opt_state)
        return after, {"loss": loss}

    def reference_pass() -> float:
        return float(jax.block_until_ready(all_logps(reference))[0, 0])

    program = jax.jit(step, donate_argnums=0)
    case = step_case(name, program, init_state(params, rule), (all_logps(reference),), facts_of(plan))
    return case, Case(f"{name}: reference pass", reference_pass)


# --- measuring -------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """Bytes by which resident memory grows at most inside the block."""

    def __enter__(self) -> "Peak":
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # what earlier cases have freed does not count
        self.start, self.most, self._done = resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, resident() - self.start)

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()
        self.most = max(self.most, resident() - self.start)


def measure(cases: Sequence[Case], rounds: int) -> dict[str, dict[str, Any]]:
    """Runs every case once per round, in turn; returns wall and process seconds, and the peak of resident memory."""
    results: dict[str, dict[str, Any]] = {case.name: {"wall": [], "process": [], "peak": 0} for case in cases}
    for number in range(rounds):
        for case in cases:
            with Peak() as peak:
                wall, process = time.perf_counter(), time.process_time()
                case.run()
                wall, process = time.perf_counter() - wall, time.process_time() - process
            result = results[case.name]
            result["wall"].append(wall)
            result["process"].append(process)
            result["peak"] = max(result["peak"], peak.most)
            print(f"  round {number + 1}: {case.name} {wall:.2f} s", file=sys.stderr, flush=True)
    for case in cases:
        result = results[case.name]
        result |= {"median": statistics.median(result["wall"]), "minimum": min(result["wall"])}
        result |= {"process_median": statistics.median(result["process"]), **case.facts, "loss": case.loss}
    return results


def relative_error(actual: Any, expected: Any) -> float:
    """The largest value of max |a - b| / max |b| over the leaves."""
    errors = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b)) / np.max(np.abs(b))), actual, expected)
    return max(jax.tree.leaves(errors))


def errors(cases: Sequence[Case], oracle: Case) -> dict[str, dict[str, float]]:
    """Errors of loss and gradient of each case's first step, relative to the oracle, which has one sequence per row."""
    return {
        case.name: {
            "loss_error": abs(case.loss - oracle.loss) / abs(oracle.loss),
            "gradient_error": relative_error(case.gradient, oracle.gradient),
        }
        for case in cases
        if case.gradient is not None
    }


def machine() -> dict[str, Any]:
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "commit": subprocess.run(
            ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip(),
    }


def record(
    name: str,
    arguments: argparse.Namespace,
    shapes: dict[str, Any],
    results: dict[str, Any],
    ratios: dict[str, float] | None = None,
) -> None:
    """Prints the results and writes them as JSON."""
    content = {
        "benchmark": name,
        "command": " ".join(["python", *(part for part in [os.path.relpath(sys.argv[0]), *sys.argv[1:]])]),
        "seed": arguments.seed,
        "rounds": arguments.rounds,
        "quick": arguments.quick,
        "machine": machine(),
        "shapes": shapes,
        "results": results,
        "ratios": ratios or {},
    }
    print(f"{name}: seed {arguments.seed}, {arguments.rounds} rounds, {content['machine']}")
    print("shapes: " + ", ".join(f"{key} {value}" for key, value in shapes.items()))
    for case, values in results.items():
        print(f"{case}: " + ", ".join(f"{key} {format_value(key, value)}" for key, value in values.items()))
    for key, value in (ratios or {}).items():
        print(f"ratio {key}: {value:.2f}")
    path = arguments.json or RESULTS / f"{name}{'.quick' if arguments.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    aside.rename(path)
    print(f"written to {path}")


def format_value(key: str, value: Any) -> str:
    """A value as the record and the page show it, with the unit that its key implies."""
    if key in ("peak", "temp_bytes") or key.endswith("_bytes"):
        return f"{value / 2**20:,.0f} MiB"
    if isinstance(value, list):
        return "[" + " ".join(format_value(key, each) for each in value) + "]"
    if isinstance(value, float):
        return f"{value:.2e}" if "error" in key else f"{value:.4g}"
    return str(value)


def on_the_fly(results: dict[str, Any], name: str) -> str:
    """Adds a result for the step with an online reference: the sum of step and reference pass in every round."""
    step, other = results[name], results[f"{name}: reference pass"]
    total: dict[str, Any] = {key: [a + b for a, b in zip(step[key], other[key])] for key in ("wall", "process")}
    total |= {"median": statistics.median(total["wall"]), "minimum": min(total["wall"])}
    total |= {"process_median": statistics.median(total["process"]), "peak": max(step["peak"], other["peak"])}
    results[f"{name}, reference on the fly"] = total
    return f"{name}, reference on the fly"


def ratios_of(results: dict[str, Any], ours: str, others: Sequence[str]) -> dict[str, float]:
    """How many times longer each of the others takes, by median and minimum of wall time and median of process time."""
    ratios = {}
    for other in others:
        for which in ("median", "minimum", "process_median"):
            ratios[f"{other} / {ours} ({which})"] = results[other][which] / results[ours][which]
    return ratios


# --- the two random problems ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Problem:
    """allpairs: 2 questions, 9 responses each, all pairs; pairs: 64 questions, one pair each."""

    sizes: Sizes
    corpus: Corpus
    units: list[Unit]
    model: Any
    params: Any
    reference: Any
    shapes: dict[str, Any]

    def expanded(self) -> StepPlan:
        """Eight pairs per microbatch, every sequence in a row of the longest one's length."""
        return planned(self.units, self.corpus, 16, longest(self.corpus), **EXPANDED)


def problem(what: str, arguments: argparse.Namespace) -> Problem:
    sizes = QUICK if arguments.quick else Sizes()
    count, responses = (2, 9) if what == "allpairs" else (64, 2)
    if arguments.quick:
        count, responses, arguments.rounds = min(count, 8), min(responses, 4), 2
    corpus = care_like(arguments.seed, count, responses, sizes.vocabulary)
    units = all_pairs(corpus)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(pathlib.Path(folder), sizes)
    shapes = vars(sizes) | {
        "questions": count,
        "responses": responses,
        "pairs": count_pairs(units),
        "longest": longest(corpus),
    }
    params, reference = models.init_params(model, 0), models.init_params(model, 1)
    return Problem(sizes, corpus, units, model, params, reference, shapes)
