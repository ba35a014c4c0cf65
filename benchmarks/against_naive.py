"""Our step against what is usually written in JAX: padded rows, every pair expanded, log-softmax over all logits.

    python benchmarks/against_naive.py allpairs          # 2 questions, 9 responses each, all pairs
    python benchmarks/against_naive.py pairs             # 64 questions, one pair each

Both with the reference precomputed, and both with its pass in every step. Loss and gradient are compared: the naive
step is the one row a sequence that errors are measured against.
"""

import harness


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("what", choices=("allpairs", "pairs"))
    arguments = parser.parse_args()
    given = harness.problem(arguments.what, arguments)
    weights = given.model, given.params, given.reference
    naive = harness.naive_cases("naive", *weights, given.expanded(), given.corpus)
    plan = harness.grouped(given.units, given.corpus, given.sizes)
    ours = harness.library_cases("ours", *weights, plan, given.corpus)
    results = harness.measure([*naive, *ours], arguments.rounds)
    for name, found in harness.errors([naive[0], ours[0]], naive[0]).items():
        results[name] |= found
    ratios = harness.ratios_of(results, "ours", ["naive", harness.on_the_fly(results, "naive")])
    ratios |= harness.ratios_of(results, harness.on_the_fly(results, "ours"), ["naive, reference on the fly"])
    harness.record(f"against_naive_{arguments.what}", arguments, given.shapes, results, ratios)


if __name__ == "__main__":
    main()
