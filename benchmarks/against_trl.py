"""Our step against TRL's DPOTrainer: the same weights, pairs and token counts in one process, in turn.

    python benchmarks/against_trl.py allpairs            # 2 questions, 9 responses each, all pairs
    python benchmarks/against_trl.py pairs               # 64 questions, one pair each
    python benchmarks/against_trl.py care --data care_rated.jsonl --model SMOLLM2_FOLDER --rounds 3

Needs the `parity` extra. TRL runs with the reference precomputed and, where --online is given, on the fly; ours both
ways. Loss and gradient norm of the first step of both are compared. `care`: all pairs of the first two questions with
at least six responses, six of each, from pretrained weights, the reference being the start.
"""

import math
import pathlib
import tempfile
from typing import Any

import harness
import optax
import peer_trl

from care_jax import models
from care_jax.data import chat, pipeline
from care_jax.data.corpus import Corpus
from care_jax.data.readers import read


def care(data: str, model: str, questions: int, responses: int, longest: int) -> Corpus:
    """The first questions of the file with so many responses that fit, these responses of each, in the model's template."""
    corpus = pipeline.tokenize(read("care", data).questions, chat.load_tokenizer(model), max_length=2048)
    parts = []
    for number in range(len(corpus)):
        room = longest - int(corpus.prompt_lengths[number])
        own = range(int(corpus.first_response[number]), int(corpus.first_response[number + 1]))
        fitting = [one for one in own if corpus.completion_lengths[one] <= room][:responses]
        if len(fitting) == responses:
            completions = [corpus.completion(one).tolist() for one in fitting]
            parts.append((corpus.prompt(number).tolist(), completions, [float(corpus.ratings[one]) for one in fitting]))
        if len(parts) == questions:
            return harness.corpus_of(parts, longest)
    raise SystemExit(f"{data}: fewer than {questions} questions with {responses} responses of at most {longest} tokens")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("what", choices=("allpairs", "pairs", "care"))
    parser.add_argument("--online", action="store_true", help="TRL's reference on the fly too")
    parser.add_argument("--data", help="care_rated.jsonl, for care")
    parser.add_argument("--model", help="a folder, for care")
    parser.add_argument("--longest", type=int, default=512, help="prompt and response together, tokens, for care")
    parser.add_argument("--trl-size", type=int, help="TRL's pairs a microbatch (default: the fastest of 1, 2, 4, 8)")
    arguments = parser.parse_args()
    sizes = harness.QUICK if arguments.quick else harness.Sizes()
    if arguments.quick:
        arguments.rounds = 2
    shapes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        if arguments.what == "care":
            corpus = care(arguments.data, arguments.model, 2, 3 if arguments.quick else 6, arguments.longest)
            model, params = models.from_pretrained(arguments.model, "float32", remat="none")
            reference, policies = params, [pathlib.Path(arguments.model)] * 2
            shapes |= {"model": pathlib.Path(arguments.model).name, "parameters": models.num_params(model.arch)}
        else:
            count, responses = (2, 9) if arguments.what == "allpairs" else (64, 2)
            if arguments.quick:
                count, responses = min(count, 8), min(responses, 4)
            corpus = harness.care_like(arguments.seed, count, responses, sizes.vocabulary)
            model = harness.make_model(folder / "config", sizes)
            params, reference = models.init_params(model, 0), models.init_params(model, 1)
            policies = [folder / "policy", folder / "reference"]
            for path, weights in zip(policies, (params, reference)):
                models.save_pretrained(path, model, weights)
            shapes |= vars(sizes)
        units = harness.all_pairs(corpus)
        plan = harness.grouped(units, corpus)
        ours = harness.library_case("ours", model, params, reference, plan, corpus)
        pairs = peer_trl.examples(units, corpus)
        size = arguments.trl_size
        warm = arguments.what != "care"
        trl = peer_trl.case("trl", *policies, pairs, online=False, size=size, warm=warm)
        cases = [ours, trl]
        if arguments.online:
            online = harness.library_case("ours, reference online", model, params, reference, plan, corpus, online=True)
            size = trl.facts["pairs_a_microbatch"]
            cases += [
                online,
                peer_trl.case("trl, reference online", *policies, pairs, online=True, size=size, warm=False),
            ]
        results = harness.measure(cases, arguments.rounds)
        norm = float(optax.tree.norm(ours.gradient))
        results["ours"]["gradient_norm"] = norm
        for name in (case.name for case in cases if case.name.startswith("trl")):
            results[name]["loss_error"] = abs(results[name]["loss"] - ours.loss) / ours.loss
            results[name]["gradient_norm_error"] = abs(results[name]["gradient_norm"] - norm) / norm
            if not math.isclose(results[name]["loss"], ours.loss, rel_tol=1e-4):
                raise AssertionError(f"{name} computed another loss: {results[name]['loss']}, ours {ours.loss}")
        shapes |= {"questions": len(corpus), "pairs": harness.count_pairs(units), "longest": harness.longest(corpus)}
        ratios = harness.ratios_of(results, "ours", ["trl"])
        if arguments.online:
            ratios |= harness.ratios_of(results, "ours", ["trl, reference online"])
            ratios |= harness.ratios_of(results, "ours, reference online", ["trl, reference online"])
        harness.record(f"against_trl_{arguments.what}", arguments, shapes, results, ratios)


if __name__ == "__main__":
    main()
