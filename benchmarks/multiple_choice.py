"""Options by log-probability beside lm-evaluation-harness's hf model: the same items, the same cores; prints the ratio.

    python benchmarks/multiple_choice.py --model FOLDER --data CARE_EVAL_FOLDER --peer-python PYTHON_WITH_LM_EVAL

Both sides start cold in a process of their own; the time is from the tokenized or raw items to the log-probabilities,
compilation included for ours, after the model is loaded. --repeat: also the second time over, when ours is compiled.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

OURS = """
import json, sys, time
from care_jax import models
from care_jax.data.chat import load_tokenizer
from care_jax.evaluation import likelihood
from care_jax.evaluation.items import Item
folder, path = sys.argv[1:3]
items = [Item(str(n), "q", one["prompt"], choices=tuple(one["choices"])) for n, one in enumerate(json.load(open(path)))]
model, params = models.from_pretrained(folder)
tokenizer = load_tokenizer(folder)
times = []
for _ in range(2):
    began = time.perf_counter()
    found = likelihood.score(model, params, [likelihood.encode(tokenizer, item) for item in items])
    times.append(time.perf_counter() - began)
print("OUT" + json.dumps({"seconds": times, "logps": found}))
"""
PEER = """
import json, sys, time
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
folder, path, batch = sys.argv[1:4]
items = json.load(open(path))
model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=int(batch))
def requests():
    return [Instance(request_type="loglikelihood", doc={}, arguments=(one["prompt"], choice), idx=n)
            for n, one in enumerate(items) for choice in one["choices"]]
times = []
for _ in range(2):
    began = time.perf_counter()
    flat = model.loglikelihood(requests(), disable_tqdm=True)
    times.append(time.perf_counter() - began)
rest = iter(flat)
print("OUT" + json.dumps({"seconds": times, "logps": [[next(rest)[0] for _ in one["choices"]] for one in items]}))
"""


def items(folder: str, count: int, options: str = "letters") -> list[dict]:
    """CARE's questions, each with four reference answers of which to choose: by letter, or each answer's own text."""
    rows = [row for path in sorted(pathlib.Path(folder).glob("*.json")) for row in json.loads(path.read_text())]
    made = []
    for number in range(count):
        own = [rows[(number * 3 + step) % len(rows)] for step in range(4)]
        question, answers = own[number % 4]["question"][:200], [one["answer"][:60] for one in own]
        if options == "letters":
            lines = [f"{letter}. {answer}" for letter, answer in zip("ABCD", answers)]
            made.append({"prompt": "\n".join([question, *lines, "Answer:"]), "choices": [" A", " B", " C", " D"]})
        else:
            made.append({"prompt": f"{question}\nAnswer:", "choices": [f" {answer}" for answer in answers]})
    return made


def side(python: str, code: str, *words: str) -> dict:
    done = subprocess.run([python, "-c", code, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.split("OUT")[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--options", choices=("letters", "answers"), default="letters")
    parser.add_argument("--peer-batch", type=int, nargs="+", default=[4, 16])
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(items(arguments.data, arguments.items, arguments.options), file)
        file.flush()
        ours = side(sys.executable, OURS, arguments.model, file.name)
        peers = {
            batch: side(arguments.peer_python, PEER, arguments.model, file.name, str(batch))
            for batch in arguments.peer_batch
        }
    batch, peer = min(peers.items(), key=lambda pair: min(pair[1]["seconds"]))
    apart = max(abs(a - b) for one, two in zip(ours["logps"], peer["logps"]) for a, b in zip(one, two))
    print(f"{arguments.items} items; largest difference of a log-probability {apart:.1e}")
    print(f"care_jax     first {ours['seconds'][0]:.1f} s (compilation in it), again {ours['seconds'][1]:.1f} s")
    print(f"lm_eval hf   first {peer['seconds'][0]:.1f} s, again {peer['seconds'][1]:.1f} s (batch {batch}, its best)")
    print(f"ratio        first {peer['seconds'][0] / ours['seconds'][0]:.2f}, again "
          f"{peer['seconds'][1] / ours['seconds'][1]:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
