"""Options by log-probability beside lm-evaluation-harness's hf model: the same items, the same cores; prints the ratio.

    python benchmarks/multiple_choice.py --model FOLDER --data CARE_EVAL_FOLDER --peer-python PYTHON_WITH_LM_EVAL
    ... --data BLEND_FOLDER --options blend

Items: CARE's questions with reference answers as options, of which the letter is asked for (behind --shots examples) or
the answer's own text; or BLEnD's questions in the form of its multiple-choice file, which asks each with several
choices of options.

Each side is a process that holds its model; rounds alternate between them, so that what else the machine does meets
both. A time is from the raw items to the log-probabilities; the first round, which holds our compilation, stands alone.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import harness

LETTERS = (" A", " B", " C", " D")
OURS = """
import json, sys, time
from care_jax import models
from care_jax.data.chat import load_tokenizer
from care_jax.evaluation.answers import logprobs
from care_jax.evaluation.items import Item
folder, path = sys.argv[1:3]
items = [Item(str(n), "q", one["prompt"], choices=tuple(one["choices"])) for n, one in enumerate(json.load(open(path)))]
model, params = models.from_pretrained(folder)
tokenizer = load_tokenizer(folder)
for _ in sys.stdin:
    began = time.perf_counter()
    scores = logprobs.score_items(model, params, [logprobs.encode_item(tokenizer, item) for item in items])
    print("OUT" + json.dumps({"seconds": time.perf_counter() - began, "logps": scores}), flush=True)
"""
PEER = """
import json, sys, time
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
folder, path, batch = sys.argv[1:4]
items = json.load(open(path))
model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=int(batch))
for _ in sys.stdin:
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=(one["prompt"], choice), idx=n)
                for n, one in enumerate(items) for choice in one["choices"]]
    began = time.perf_counter()
    flat = model.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began
    rest = iter(flat)
    logps = [[next(rest)[0] for _ in one["choices"]] for one in items]
    print("OUT" + json.dumps({"seconds": seconds, "logps": logps}), flush=True)
"""


def items(folder: str, count: int, options: str = "letters", shots: int = 0) -> list[dict]:
    """CARE's questions, each with four reference answers of which to choose: by letter, or each answer's own text.

    shots: as many of them with their letter stand before each, the same before all, as in a task's few-shot form.
    """
    if shots:
        made = items(folder, shots + count, options)
        letters = [one["choices"][number % 4] for number, one in enumerate(made[:shots])]
        examples = "".join(f"{one['prompt']}{letter}\n\n" for one, letter in zip(made, letters))
        return [{**one, "prompt": examples + one["prompt"]} for one in made[shots:]]
    rows = [row for path in sorted(pathlib.Path(folder).glob("*.json")) for row in json.loads(path.read_text())]
    made = []
    for number in range(count):
        own = [rows[(number * 3 + step) % len(rows)] for step in range(4)]
        question, answers = own[number % 4]["question"][:200], [one["answer"][:60] for one in own]
        if options == "letters":
            lines = [f"{letter}. {answer}" for letter, answer in zip("ABCD", answers)]
            made.append({"prompt": "\n".join([question, *lines, "Answer:"]), "choices": list(LETTERS)})
        else:
            made.append({"prompt": f"{question}\nAnswer:", "choices": [f" {answer}" for answer in answers]})
    return made


def blend_items(folder: str, count: int) -> list[dict]:
    """Each question of two countries with an answer of its own and three of the other's, six choices of them."""
    countries = [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob("*_data*.json"))][:2]
    made = []
    for identity in countries[0]:
        for own, other in (countries, countries[::-1]):
            answers = [[one["en_answers"][0] for one in side[identity]["annotations"]] for side in (own, other)]
            wrong = [answer for answer in answers[1] if answer not in answers[0]]
            if not answers[0]:
                continue
            for three in itertools.islice(itertools.combinations(wrong, 3), 6):
                options = sorted([answers[0][0], *three])
                lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options)]
                asked = (
                    f"{own[identity]['en_question']} Without any explanation, choose only one from the given alphabet "
                    'choices(e.g., A, B, C). Provide as JSON format: {"answer_choice":""}'
                )
                made.append({"prompt": "\n".join([f"{asked}\n", *lines, "\nAnswer:"]), "choices": list(LETTERS)})
    if len(made) < count:
        raise SystemExit(f"{folder}: makes {len(made)} items, --items asks for {count}")
    return made[:count]


class Side:
    """A process that scores the items once a line."""

    def __init__(self, python: str, code: str, *words: str):
        self.seconds: list[float] = []
        self.logps: list[list[float]] = []
        words = (python, "-c", code, *words)
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("OUT"):
                found = json.loads(line[3:])
                self.seconds.append(found["seconds"])
                self.logps = found["logps"]
                return
        raise SystemExit(f"{self._process.args[0]}: ended before its answer")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def made_items(arguments: argparse.Namespace) -> list[dict]:
    if arguments.options == "blend":
        return blend_items(arguments.data, arguments.items)
    return items(arguments.data, arguments.items, arguments.options, arguments.shots)


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--options", choices=("letters", "answers", "blend"), default="letters")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--peer-batch", type=int, default=4, help="its best here of 1, 4, 16")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.items, arguments.rounds = 2, 1
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(made_items(arguments), file)
        file.flush()
        ours = Side(sys.executable, OURS, arguments.model, file.name)
        peer = Side(arguments.peer_python, PEER, arguments.model, file.name, str(arguments.peer_batch))
        for number in range(1 + arguments.rounds):
            for one in (ours, peer):
                one.round()
            print(f"round {number}: care_jax {ours.seconds[-1]:.1f} s, lm_eval hf {peer.seconds[-1]:.1f} s", flush=True)
        for one in (ours, peer):
            one.close()
    results = {}
    for name, one in (("ours", ours), ("lm_eval hf", peer)):
        first, *rest = one.seconds
        results[name] = {"first": first, "wall": rest, "median": statistics.median(rest), "minimum": min(rest)}
    apart = max(abs(a - b) for one, two in zip(ours.logps, peer.logps) for a, b in zip(one, two))
    results["lm_eval hf"]["logp_error"] = apart
    ratios = {
        f"lm_eval hf / ours ({which})": results["lm_eval hf"][which] / results["ours"][which]
        for which in ("median", "minimum", "first")
    }
    form = f"{arguments.options}_{arguments.shots}_shots" if arguments.shots else arguments.options
    shapes = {"items": arguments.items, "options": arguments.options, "examples before each": arguments.shots}
    harness.record(f"multiple_choice_{form}", arguments, shapes, results, ratios)


if __name__ == "__main__":
    main()
