"""Loading a 1 GB checkpoint: the host holds the result and the stack of one weight, no more."""

import json
import subprocess
import sys

import pytest

CONFIG = {
    "model_type": "llama",
    "vocab_size": 16_000,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}

MAKE = """
import sys
import care_jax.models as models
model = models.from_config(sys.argv[1] + "/config.json")
models.save_pretrained(sys.argv[1] + "/model", model, models.init_params(model, 0, param_dtype="bfloat16"))
"""

LOAD = """
import json, resource, sys, threading, time
import jax
import care_jax.models as models
from care_jax import sharding

def anonymous():  # kB of this process that are not mapped files
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("RssAnon")).split()[1])

jax.block_until_ready(jax.numpy.zeros(8))
before, peak, done = anonymous(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
mesh = sharding.make_mesh(*json.loads(sys.argv[2])) if sys.argv[2] != "null" else None
_, params = models.from_pretrained(sys.argv[1] + "/model", dtype="bfloat16", mesh=mesh)
jax.block_until_ready(params)
done = True
thread.join()
leaves = jax.tree.leaves(params)
print(json.dumps([1024 * (peak - before), sum(x.nbytes for x in leaves), max(x.nbytes for x in leaves)]))
"""


@pytest.mark.slow
def test_loading_holds_the_result_and_one_stack(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    subprocess.run([sys.executable, "-c", MAKE, str(tmp_path)], check=True)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size > 0.9e9
    for mesh in ("null", "[1, 8, 1]"):
        run = subprocess.run(
            [sys.executable, "-c", LOAD, str(tmp_path), mesh], check=True, capture_output=True, text=True
        )
        peak, result, stack = json.loads(run.stdout)
        print(f"mesh {mesh}: peak {peak / 1e6:.0f} MB, result {result / 1e6:.0f} MB, one stack {stack / 1e6:.0f} MB")
        assert peak < result + 1.1 * stack + 50e6
