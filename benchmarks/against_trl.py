"""Our step against TRL's DPOTrainer: the same weights, pairs and token counts, in turns in one process.

    python benchmarks/against_trl.py allpairs            # 2 questions, 9 responses each, all pairs
    python benchmarks/against_trl.py pairs               # 64 questions, one pair each
    python benchmarks/against_trl.py care --data care_rated.jsonl --model SMOLLM2_FOLDER --rounds 3

Needs the `parity` extra. Both run with the reference precomputed. The reference pass is timed separately in every
round, and "on the fly" is the sum of the two, which is the work of a step with an online reference. Loss and gradient
norm of the first step are compared. `care`: all pairs of the first two questions with six responses, from pretrained
weights.
"""

import argparse
import pathlib
import tempfile

import harness
import optax
import peer_trl

from care_jax import models
from care_jax.data import chat, pipeline, readers


def care(arguments: argparse.Namespace) -> harness.Problem:
    """All pairs of the first two questions of the file with six responses that fit, in the model's template."""
    longest, count = arguments.longest, 3 if arguments.quick else 6
    tokenizer = chat.load_tokenizer(arguments.model)
    corpus = pipeline.tokenize(readers.read("care", arguments.data).questions, tokenizer, max_length=2048)
    parts = []
    for number in range(len(corpus)):
        capacity = longest - int(corpus.prompt_lengths[number])
        responses = range(int(corpus.first_response[number]), int(corpus.first_response[number + 1]))
        fitting = [each for each in responses if corpus.completion_lengths[each] <= capacity][:count]
        if len(fitting) == count:
            completions = [corpus.completions[each].tolist() for each in fitting]
            ratings = [float(corpus.ratings[each]) for each in fitting]
            parts.append((corpus.prompts[number].tolist(), completions, ratings))
        if len(parts) == 2:
            break
    chosen = harness.corpus_of(parts, longest)
    units = harness.all_pairs(chosen)
    model, params = models.from_pretrained(arguments.model, "float32")
    shapes = {
        "model": pathlib.Path(arguments.model).name,
        "parameters": models.num_params(model.arch),
        "questions": len(chosen),
        "responses": count,
        "pairs": harness.count_pairs(units),
        "longest": harness.longest(chosen),
    }
    return harness.Problem(harness.Sizes(), chosen, units, model, params, params, shapes)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("what", choices=("allpairs", "pairs", "care"))
    parser.add_argument("--no-reference-pass", action="store_true", help="time only precomputed references")
    parser.add_argument("--data", help="care_rated.jsonl, for care")
    parser.add_argument("--model", help="a folder, for care")
    parser.add_argument("--longest", type=int, default=512, help="most tokens of prompt and response, for care")
    parser.add_argument("--trl-size", type=int, help="TRL's pairs per microbatch (default: the fastest of 1, 2, 4, 8)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        if arguments.what == "care":
            problem = care(arguments)
            policies = [pathlib.Path(arguments.model)] * 2
        else:
            problem = harness.problem(arguments.what, arguments)
            policies = [folder / "policy", folder / "reference"]
            for path, weights in zip(policies, (problem.params, problem.reference)):
                models.save_pretrained(path, problem.model, weights)
        plan = harness.grouped(problem.units, problem.corpus, problem.model.arch)
        ours = harness.library_cases("ours", problem.model, problem.params, problem.reference, plan, problem.corpus)
        pairs = peer_trl.examples(problem.units, problem.corpus)
        trl = peer_trl.cases("trl", *policies, pairs, arguments.trl_size)
        cases = [ours[0], trl[0]] if arguments.no_reference_pass else [*ours, *trl]
        results = harness.measure(cases, arguments.rounds)
    theirs = results["trl"]
    results["ours"]["gradient_norm"] = norm = float(optax.tree.norm(ours[0].gradient))
    theirs["loss_error"] = abs(theirs["loss"] - ours[0].loss) / ours[0].loss
    theirs["gradient_norm_error"] = abs(theirs["gradient_norm"] - norm) / norm
    if theirs["loss_error"] > 1e-4:
        raise AssertionError(f"TRL computed another loss: {theirs['loss']}, ours {ours[0].loss}")
    ratios = harness.ratios_of(results, "ours", ["trl"])
    if not arguments.no_reference_pass:
        online = harness.on_the_fly(results, "trl")
        ratios |= harness.ratios_of(results, "ours", [online])
        ratios |= harness.ratios_of(results, harness.on_the_fly(results, "ours"), [online])
    harness.record(f"against_trl_{arguments.what}", arguments, problem.shapes, results, ratios)


if __name__ == "__main__":
    main()
