"""The library's own modes against each other: what `allpairs` and `pairs` measure."""

import argparse

import harness

GROUPED = "grouped"


def run(name: str, arguments: argparse.Namespace) -> None:
    """Every switch of `batch.*` on one after another, all with chunked log-probabilities."""
    given = harness.problem(name, arguments)
    units, corpus, length = given.units, given.corpus, harness.longest(given.corpus)
    rows, row_length = 4, max(512, length)
    plans = {
        "expanded": given.expanded(),
        "packed": harness.planned(units, corpus, rows, row_length, share_responses=False, share_prompts=False),
        "packed, prompts shared": harness.planned(units, corpus, rows, row_length, share_responses=False),
        GROUPED: harness.grouped(units, corpus, given.sizes),
    }
    if name == "allpairs":
        most = max(len(question.responses) for question in corpus.questions)
        plans["responses shared"] = harness.planned(units, corpus, most, length, packing=False)
    cases = []
    for mode, plan in plans.items():
        step, reference_pass = harness.library_cases(mode, given.model, given.params, given.reference, plan, corpus)
        cases += [step, reference_pass] if mode == GROUPED else [step]
    results = harness.measure(cases, arguments.rounds)
    for mode, found in harness.errors(cases, cases[0]).items():
        results[mode] |= found
    results[GROUPED]["operations"] = harness.operations(plans[GROUPED], given.sizes)
    others = [mode for mode in plans if mode != GROUPED] + [harness.on_the_fly(results, GROUPED)]
    harness.record(name, arguments, given.shapes, results, harness.ratios_of(results, GROUPED, others))
