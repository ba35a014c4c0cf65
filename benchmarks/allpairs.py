"""All rating-ordered pairs of a few questions in one step: what each of the library's switches brings.

    python benchmarks/allpairs.py [--questions 2] [--responses 9] [--rounds 5] [--quick]

The same pairs, weights and loss in every mode: `expanded` runs both sequences of every pair in a padded row of its own,
the others share responses, share prompts and pack, one after another. All with chunked log-probabilities.
"""

import pathlib
import tempfile

import harness

from care_jax import models

ROWS, ROW_LENGTH = 5, 512


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--responses", type=int, default=9)
    parser.add_argument("--only", nargs="*", help="names of modes")
    arguments = parser.parse_args()
    sizes = harness.Sizes()
    if arguments.quick:
        sizes, arguments.responses, arguments.rounds = harness.QUICK, 4, 2
    corpus = harness.care_like(arguments.seed, arguments.questions, arguments.responses, sizes.vocabulary)
    units = harness.all_pairs(corpus)
    with tempfile.TemporaryDirectory() as folder:
        model = harness.make_model(pathlib.Path(folder), sizes)
    params, reference = models.init_params(model, 0), models.init_params(model, 1)
    length = harness.longest(corpus)
    plans = {
        "expanded": harness.planned(units, corpus, 16, length, **harness.EXPANDED),
        "expanded, packed, prompts shared": harness.planned(units, corpus, ROWS, ROW_LENGTH, share_responses=False),
        "responses shared, padded": harness.planned(units, corpus, arguments.responses, length, packing=False),
        "responses shared, packed": harness.planned(units, corpus, ROWS + 1, ROW_LENGTH, share_prompts=False),
        "grouped": harness.exact(harness.planned(units, corpus, ROWS, ROW_LENGTH)),
    }
    wanted = arguments.only or list(plans)
    cases = [
        harness.library_case(name, model, params, reference, plan, corpus)
        for name, plan in plans.items()
        if name in wanted
    ]
    if "grouped" in wanted:
        plan = plans["grouped"]
        case = harness.library_case("grouped, reference online", model, params, reference, plan, corpus, online=True)
        cases.append(case)
    results = harness.measure(cases, arguments.rounds)
    if "expanded" in wanted:
        for name, found in harness.errors(cases, cases[0]).items():
            results[name] |= found
    shapes = {
        **vars(sizes),
        "pairs": harness.count_pairs(units),
        "questions": len(corpus),
        "responses": arguments.responses,
    }
    ratios = harness.ratios_of(results, "grouped", [case.name for case in cases if case.name != "grouped"])
    harness.record("allpairs", arguments, shapes, results, ratios)


if __name__ == "__main__":
    main()
