"""How well rows are packed, how fast they are read, and what planning costs: one figure per line.

    python benchmarks/data.py packing care_rated.jsonl TOKENIZER_FOLDER    # filled share of the token slots
    python benchmarks/data.py reading care_rated.jsonl TOKENIZER_FOLDER    # 28,000 rows to ready examples, seconds
    python benchmarks/data.py prepared care_rated.jsonl TOKENIZER_FOLDER   # tokens per second of one core, from a cache
    python benchmarks/data.py scale                                        # the plan of a step over 10 million lengths

`prepared` counts CPU seconds of planning and filling whole steps (128 groups of all pairs, 2 rows per microbatch).
`scale` uses random lengths: questions of 8 responses, all pairs, in group units.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import tempfile
import time

import numpy as np

from care_jax.data import chat, pipeline, readers
from care_jax.data.corpus import Corpus, Tokens
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.plans import plan_step
from care_jax.data.preferences import Unit, make_units
from care_jax.data.readers import token_cache

EXAMPLES, ROWS, ROW_LENGTH, MAX_LENGTH = 128, 2, 2048, 2048


def batch_shape_of(units: list[Unit], corpus: Corpus) -> BatchShape:
    return pipeline.batch_shape(units, corpus, BatchShape(ROWS, ROW_LENGTH))


def packing(data: str, tokenizer: str, epochs: int = 16) -> None:
    """Filled share of all token slots, over one epoch and over several, each another permutation.

    Also how many steps take more microbatches than their tokens need.
    """
    corpus = pipeline.tokenize(
        readers.read("care", data).questions, chat.load_tokenizer(tokenizer), max_length=MAX_LENGTH
    )
    for policy in ("all", "best_worst"):
        units = make_units(corpus.questions, policy=policy, unit="group")
        stream, shape = pipeline.mixture([(units, 1.0)]), batch_shape_of(units, corpus)
        tokens, slots, above = 0, 0, 0
        first = -(-len(units) // EXAMPLES)
        for step in range(epochs * len(units) // EXAMPLES):
            plan = plan_step(pipeline.step_units(stream, step, EXAMPLES), corpus, shape)
            tokens += plan.tokens
            slots += plan.count * ROWS * ROW_LENGTH
            above += plan.count > -(-plan.tokens // (ROWS * ROW_LENGTH))
            if step + 1 == first:
                print(f"packing efficiency, pairs {policy}, the first {first} steps: {tokens / slots:.4f}")
        print(f"packing efficiency, pairs {policy}, {step + 1} steps: {tokens / slots:.4f}")
        print(f"steps with more microbatches than their tokens need: {above}")


def repeated(data: str, count: int, path: pathlib.Path) -> None:
    """Writes `count` rows: those of the data, repeated with other questions."""
    rows = [json.loads(line) for line in pathlib.Path(data).read_text(encoding="utf-8").splitlines()]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            copy, index = divmod(number, len(rows))
            row = rows[index] | {"question": f"{rows[index]['question']} {copy}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def reading(data: str, tokenizer: str, rows: int = 28_000) -> None:
    loaded = chat.load_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.jsonl"
        repeated(data, rows, path)
        start = time.perf_counter()
        questions = readers.read("care", str(path)).questions
        corpus = pipeline.tokenize(questions, loaded, max_length=MAX_LENGTH)
        units = make_units(corpus.questions)
        shape = batch_shape_of(units, corpus)
        plan_step(units[:EXAMPLES], corpus, shape)
        seconds = time.perf_counter() - start
    load = os.getloadavg()[0]
    print(f"{rows:,} rows to ready examples: {seconds:.1f} s on {os.cpu_count()} cores (load average {load:.1f})")


def from_cache(data: str, tokenizer: str, copies: int = 4) -> None:
    loaded = chat.load_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        repeated(data, copies * 2700, folder / "rows.jsonl")
        data_read = readers.read("care", str(folder / "rows.jsonl"))
        preparation = token_cache.Preparation(tokenizer, {})
        token_cache.write(folder / "cache", data_read.questions, data_read.report, loaded, preparation)
        start = time.process_time()
        corpus = pipeline.tokenize(
            readers.read("prepared", str(folder / "cache")).questions, loaded, max_length=MAX_LENGTH
        )
        units = make_units(corpus.questions, policy="all", unit="group")
        stream, shape = pipeline.mixture([(units, 1.0)]), batch_shape_of(units, corpus)
        started = time.process_time()
        tokens, planning = 0, 0.0
        for step in range(-(-len(units) // EXAMPLES)):
            began = time.process_time()
            plan = plan_step(pipeline.step_units(stream, step, EXAMPLES), corpus, shape)
            planning += time.process_time() - began
            tokens += plan.tokens
            pipeline.fill(plan, corpus)
        seconds = time.process_time() - started
    print(f"start-up of {len(corpus):,} questions: {started - start:.2f} s CPU")
    print(f"reading and filling: {tokens / (seconds - planning):,.0f} tokens per second per core")
    print(f"planning, reading and filling: {tokens / seconds:,.0f} tokens per second per core")


def scale(responses: int = 10_000_000, each: int = 8) -> None:
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    questions = responses // each
    none = np.zeros(0, np.int32)
    prompts = Tokens(rng.integers(8, 80, questions), np.zeros(questions, np.int64), none)
    completions = Tokens(rng.integers(16, 240, responses), np.zeros(responses, np.int64), none)
    first = np.arange(0, responses + 1, each)
    corpus = Corpus((), prompts, completions, first, np.zeros(responses, np.float32), MAX_LENGTH)
    names, pairs = tuple(range(each)), tuple(itertools.combinations(range(each), 2))
    units = [Unit(question, names, pairs) for question in range(questions)]
    stream, shape = pipeline.mixture([(units, 1.0)]), batch_shape_of(units, corpus)

    def with_cost(what: str) -> str:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return f"{what}: {time.perf_counter() - start:.1f} s after the start, {memory:.2f} GiB"

    for step in (0, 5_000):
        plan = plan_step(pipeline.step_units(stream, step, EXAMPLES), corpus, shape)
        print(f"{with_cost(f'plan of step {step:,} over {responses:,} responses')}, efficiency {plan.efficiency:.4f}")
    total = pipeline.number_of_steps(stream, EXAMPLES, 1, None)
    sized = pipeline.set_microbatches(pipeline.StepSource(stream, corpus, EXAMPLES, shape), total).shape
    print(f"{with_cost(f'a run of {total:,} steps is sized')}, {sized.microbatches} microbatches at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("packing", "reading", "prepared", "scale"))
    parser.add_argument("data", nargs="?", help="rows in CARE's schema, JSON lines")
    parser.add_argument("tokenizer", nargs="?", help="a folder or hub id")
    arguments = parser.parse_args()
    if arguments.what == "scale":
        scale()
        return
    if arguments.tokenizer is None:
        parser.error("DATA and TOKENIZER are needed")
    run = {"packing": packing, "reading": reading, "prepared": from_cache}[arguments.what]
    run(arguments.data, arguments.tokenizer)


if __name__ == "__main__":
    main()
