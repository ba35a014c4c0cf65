"""Our step against the usual one in JAX: padded rows, every pair expanded, log-softmax over all logits.

    python benchmarks/against_naive.py allpairs          # 2 questions, 9 responses each, all pairs
    python benchmarks/against_naive.py pairs             # 64 questions, one pair each

Both are timed with the reference precomputed and with its pass in every step. Loss and gradient are compared: errors
are relative to the naive step, which has one sequence per row.
"""

import harness


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("what", choices=("allpairs", "pairs"))
    arguments = parser.parse_args()
    problem = harness.problem(arguments.what, arguments)
    weights = problem.model, problem.params, problem.reference
    naive = harness.naive_cases("naive", *weights, problem.expanded(), problem.corpus)
    plan = harness.grouped(problem.units, problem.corpus, problem.sizes)
    ours = harness.library_cases("ours", *weights, plan, problem.corpus)
    results = harness.measure([*naive, *ours], arguments.rounds)
    for name, errors in harness.errors([naive[0], ours[0]], naive[0]).items():
        results[name] |= errors
    ratios = harness.ratios_of(results, "ours", ["naive", harness.on_the_fly(results, "naive")])
    ratios |= harness.ratios_of(results, harness.on_the_fly(results, "ours"), ["naive, reference on the fly"])
    harness.record(f"against_naive_{arguments.what}", arguments, problem.shapes, results, ratios)


if __name__ == "__main__":
    main()
