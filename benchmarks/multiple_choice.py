"""Options by log-probability against lm-evaluation-harness's hf model: the same items and cores; prints the ratio.

    python benchmarks/multiple_choice.py --model FOLDER --data CARE_EVAL_FOLDER --peer-python PYTHON_WITH_LM_EVAL
    ... --data BLEND_FOLDER --options blend

Items: CARE's questions with reference answers as options, either by letter (after --shots examples) or by the text of
the answer; or BLEnD's questions in the form of its multiple-choice file, which asks each question with several sets of
options.

Each side is a process that keeps its model. Rounds alternate between them, so that other load on the machine affects
both. A time is from the raw items to the log-probabilities; the first round, which includes our compilation, is listed
separately.
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
entries = json.load(open(path))
items = [Item(str(n), "q", entry["prompt"], choices=tuple(entry["choices"])) for n, entry in enumerate(entries)]
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
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=(entry["prompt"], choice), idx=n)
                for n, entry in enumerate(items) for choice in entry["choices"]]
    began = time.perf_counter()
    flat = model.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began
    rest = iter(flat)
    logps = [[next(rest)[0] for _ in entry["choices"]] for entry in items]
    print("OUT" + json.dumps({"seconds": seconds, "logps": logps}), flush=True)
"""


def items(folder: str, count: int, options: str = "letters", shots: int = 0) -> list[dict]:
    """CARE's questions, each with four reference answers as options: by letter, or by the text of the answer.

    shots: number of solved examples before each question, the same before all, as in the few-shot form of a task.
    """
    if shots:
        all_items = items(folder, shots + count, options)
        letters = [item["choices"][number % 4] for number, item in enumerate(all_items[:shots])]
        examples = "".join(f"{item['prompt']}{letter}\n\n" for item, letter in zip(all_items, letters))
        return [{**item, "prompt": examples + item["prompt"]} for item in all_items[shots:]]
    rows = [row for path in sorted(pathlib.Path(folder).glob("*.json")) for row in json.loads(path.read_text())]
    result = []
    for number in range(count):
        four = [rows[(number * 3 + step) % len(rows)] for step in range(4)]
        question, answers = four[number % 4]["question"][:200], [row["answer"][:60] for row in four]
        if options == "letters":
            lines = [f"{letter}. {answer}" for letter, answer in zip("ABCD", answers)]
            result.append({"prompt": "\n".join([question, *lines, "Answer:"]), "choices": list(LETTERS)})
        else:
            result.append({"prompt": f"{question}\nAnswer:", "choices": [f" {answer}" for answer in answers]})
    return result


def blend_items(folder: str, count: int) -> list[dict]:
    """Each question of two countries with one of its answers and three of the other country's, in up to six sets."""
    countries = [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob("*_data*.json"))][:2]
    result = []
    for identity in countries[0]:
        for country, other in (countries, countries[::-1]):
            answers = [[each["en_answers"][0] for each in side[identity]["annotations"]] for side in (country, other)]
            wrong = [answer for answer in answers[1] if answer not in answers[0]]
            if not answers[0]:
                continue
            for three in itertools.islice(itertools.combinations(wrong, 3), 6):
                options = sorted([answers[0][0], *three])
                lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options)]
                question = (
                    f"{country[identity]['en_question']} Without any explanation, choose only one from the given "
                    'alphabet choices(e.g., A, B, C). Provide as JSON format: {"answer_choice":""}'
                )
                result.append({"prompt": "\n".join([f"{question}\n", *lines, "\nAnswer:"]), "choices": list(LETTERS)})
    if len(result) < count:
        raise SystemExit(f"{folder}: gives {len(result)} items, --items asks for {count}")
    return result[:count]


class Side:
    """A process that scores the items once for each line that it reads."""

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
                output = json.loads(line[3:])
                self.seconds.append(output["seconds"])
                self.logps = output["logps"]
                return
        raise SystemExit(f"{self._process.args[0]}: ended before it answered")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def chosen_items(arguments: argparse.Namespace) -> list[dict]:
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
    parser.add_argument("--peer-batch", type=int, default=4, help="the fastest of 1, 4 and 16 on our machine")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.items, arguments.rounds = 2, 1
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(chosen_items(arguments), file)
        file.flush()
        ours = Side(sys.executable, OURS, arguments.model, file.name)
        peer = Side(arguments.peer_python, PEER, arguments.model, file.name, str(arguments.peer_batch))
        for number in range(1 + arguments.rounds):
            for side in (ours, peer):
                side.round()
            print(f"round {number}: care_jax {ours.seconds[-1]:.1f} s, lm_eval hf {peer.seconds[-1]:.1f} s", flush=True)
        for side in (ours, peer):
            side.close()
    results = {}
    for name, side in (("ours", ours), ("lm_eval hf", peer)):
        first, *rest = side.seconds
        results[name] = {"first": first, "wall": rest, "median": statistics.median(rest), "minimum": min(rest)}
    pairs = ((a, b) for left, right in zip(ours.logps, peer.logps) for a, b in zip(left, right))
    results["lm_eval hf"]["logp_error"] = max(abs(a - b) for a, b in pairs)
    ratios = {
        f"lm_eval hf / ours ({which})": results["lm_eval hf"][which] / results["ours"][which]
        for which in ("median", "minimum", "first")
    }
    form = f"{arguments.options}_{arguments.shots}_shots" if arguments.shots else arguments.options
    shapes = {"items": arguments.items, "options": arguments.options, "examples before each": arguments.shots}
    harness.record(f"multiple_choice_{form}", arguments, shapes, results, ratios)


if __name__ == "__main__":
    main()
