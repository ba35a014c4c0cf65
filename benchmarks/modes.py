"""The modes of the library against each other, as `allpairs` and `pairs` measure them."""

import argparse

import harness

GROUPED = "grouped"


def run(name: str, arguments: argparse.Namespace) -> None:
    """Turns on the switches of `batch.*` one after another, all with chunked log-probabilities."""
    problem = harness.problem(name, arguments)
    units, corpus, length = problem.units, problem.corpus, harness.longest(problem.corpus)
    rows, row_length = 4, max(512, length)
    plans = {
        "expanded": problem.expanded(),
        "packed": harness.planned(units, corpus, rows, row_length, share_responses=False, share_prompts=False),
        "packed, prompts shared": harness.planned(units, corpus, rows, row_length, share_responses=False),
        GROUPED: harness.grouped(units, corpus, problem.sizes),
    }
    if name == "allpairs":
        most = max(len(question.responses) for question in corpus.questions)
        plans["responses shared"] = harness.planned(units, corpus, most, length, packing=False)
    cases = []
    for mode, plan in plans.items():
        step, reference_pass = harness.library_cases(
            mode, problem.model, problem.params, problem.reference, plan, corpus
        )
        cases += [step, reference_pass] if mode == GROUPED else [step]
    results = harness.measure(cases, arguments.rounds)
    for mode, errors in harness.errors(cases, cases[0]).items():
        results[mode] |= errors
    results[GROUPED]["operations"] = harness.operations(plans[GROUPED], problem.sizes)
    others = [mode for mode in plans if mode != GROUPED] + [harness.on_the_fly(results, GROUPED)]
    harness.record(name, arguments, problem.shapes, results, harness.ratios_of(results, GROUPED, others))
