"""How full the rows are, what planning costs, and how many shapes a run has: random questions of CARE's lengths.

    python benchmarks/pack.py [--questions 512] [--quick]

Steps of 64 units, each with all pairs of a question or with one, in rows of 512, 1,024 and 2,048 tokens.
benchmarks/data.py does the same for real text.
"""

import time

import harness
import jax

from care_jax.data import pipeline
from care_jax.data.packing.plans import plan_step
from care_jax.data.preferences import make_units

EXAMPLES, SLOTS = 64, 8192


def main() -> None:
    parser = harness.parser(__doc__, rounds=1)
    parser.add_argument("--questions", type=int, default=512)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.questions = 128
    results = {}
    for policy in ("all", "best_worst"):
        corpus = harness.care_like(arguments.seed, arguments.questions, 9, 32768)
        units = make_units(corpus.questions, "pairs", policy=policy, unit="group")
        stream = pipeline.mixture([(units, 1.0)], seed=arguments.seed)
        for row_length in (512, 1024, 2048):
            shape = pipeline.batch_shape(units, corpus, pipeline.BatchShape(SLOTS // row_length, row_length))
            steps = -(-len(units) // EXAMPLES)
            began = time.process_time()
            shape = pipeline.set_microbatches(pipeline.StepSource(stream, corpus, EXAMPLES, shape), steps).shape
            sizing = time.process_time() - began
            began, plans, shapes = time.process_time(), [], set()
            for step in range(steps):
                plans.append(plan_step(pipeline.step_units(stream, step, EXAMPLES), corpus, shape))
                batch = pipeline.fill(plans[-1], corpus)
                shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(batch)))
            seconds = time.process_time() - began
            tokens = sum(plan.tokens for plan in plans)
            completions = sum(int(plan.responses.length.sum()) for plan in plans)
            results[f"{policy}, rows of {row_length}"] = {
                "fill": tokens / sum(plan.count * SLOTS for plan in plans),
                "completion_fill": completions / sum(plan.count * shape.completions for plan in plans),
                "tokens": tokens,
                "tokens_per_core_second": tokens / seconds,
                "sizing_seconds": sizing,
                "shapes": len(shapes),
            }
    harness.record("pack", arguments, {"questions": arguments.questions, "examples per step": EXAMPLES}, results)


if __name__ == "__main__":
    main()
