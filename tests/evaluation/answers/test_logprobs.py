"""Log-probabilities of choices: packed rows against each choice alone; SmolLM2 against transformers."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax import models, sharding
from care_jax.data.chat import load_tokenizer
from care_jax.data.rows.files import SAMPLE
from care_jax.evaluation.answers import logprobs
from care_jax.evaluation.items import Item

CONFIG = {
    "model_type": "llama", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "initializer_range": 0.2,
}  # fmt: skip


def items():
    """Letters (one token each), choices of several tokens, whole texts; prompts of many lengths."""
    lettered = [
        Item(
            str(n), "q", f"Question {n}: {'tea and rice ' * (n % 7)}?\nA. x\nB. y\nAnswer:", choices=(" A", " B", " C")
        )
        for n in range(9)
    ]
    examples = "".join(f"Question {n}: what is drunk?\nA. tea\nB. rice\nAnswer: A\n\n" for n in range(4))
    lettered += [Item(f"s{n}", "q", f"{examples}Question: {n}?\nAnswer:", choices=(" A", " B")) for n in range(5)]
    worded = [Item("w", "q", "Guests are given", choices=(" green tea with mint", " bread", " nothing at all to eat"))]
    whole = [Item("t", "q", "", choices=("喝茶是习惯", "He drank tea."), standalone=True)]
    return [*lettered, *worded, *whole]


@pytest.mark.parametrize("devices", [None, 2])
def test_packed_rows_equal_each_choice_alone(tmp_path, devices):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = models.from_config(tmp_path)
    mesh = None if devices is None else sharding.make_mesh(1, devices, 1, devices=jax.devices()[:devices])
    params = models.init_params(model, 0, mesh)
    tokenizer = load_tokenizer(str(SAMPLE / "model"))
    encoded = [logprobs.encode_item(tokenizer, item) for item in items()]
    scores = logprobs.score_items(model, params, encoded, mesh)
    alone = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens[None])[0]))
    assert [len(values) for values in scores] == [len(item.choices) for item in encoded]
    if devices is not None:
        encoded, scores = encoded[-2:], scores[-2:]
    for item, values in zip(encoded, scores):
        for choice, value in zip(item.choices, values):
            ids = np.zeros(256, np.int32)
            size = len(item.prompt) + len(choice)
            ids[:size] = [*item.prompt, *choice]
            logps = np.asarray(alone(jnp.asarray(ids)))
            expected = sum(logps[place - 1, ids[place]] for place in range(len(item.prompt), size))
            np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5)


def test_prompt_and_choice_are_tokenized_together():
    tokenizer = load_tokenizer(str(SAMPLE / "model"))
    plain = logprobs.encode_item(tokenizer, items()[0])
    joined = tokenizer(items()[0].prompt + " A")["input_ids"]
    assert [*plain.prompt, *plain.choices[0]] == joined
    templated = logprobs.encode_item(tokenizer, items()[0], template="model")
    assert len(templated.prompt) > len(plain.prompt)


PEER = """
import json, sys, torch, transformers
folder, path = sys.argv[1:3]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
out = []
for item in json.load(open(path)):
    prompt = tokenizer(item["prompt"])["input_ids"]
    values = []
    for choice in item["choices"]:
        ids = tokenizer(item["prompt"] + choice)["input_ids"]
        with torch.no_grad():
            logps = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        values.append(sum(logps[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))))
    out.append(values)
print(json.dumps(out))
"""


def hundred(shared):
    """CARE's reference answers as choices: each question with its own and those of the next three."""
    from care_jax.evaluation.items import Options
    from care_jax.evaluation.tasks.rated import read_care_items

    care = [
        item for item in read_care_items(str(shared / "data" / "care_eval"), Options()).items if item.id.endswith("3")
    ]
    items = []
    for number in range(100):
        near = [care[(number + step) % len(care)] for step in range(4)]
        lines = [f"{letter}. {item.fields['reference'][:60]}" for letter, item in zip("ABCD", near)]
        prompt = "\n".join([near[number % 4].question[:200], *lines, "Answer:"])
        items.append(Item(str(number), near[0].question, prompt, choices=(" A", " B", " C", " D")))
    return items


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_equals_transformers_on_a_hundred_items(shared, real_models, tmp_path):
    """The peer runs in the interpreter that CARE_JAX_PARITY_PYTHON names, or else in this one if it has torch."""
    python = os.environ.get("CARE_JAX_PARITY_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch, transformers"], capture_output=True, check=False).returncode:
        pytest.skip("no torch here: name a Python that has it by CARE_JAX_PARITY_PYTHON")
    folder = pathlib.Path(real_models) / "smollm2-135m-instruct"
    chosen = hundred(shared)
    path = tmp_path / "items.json"
    path.write_text(json.dumps([{"prompt": item.prompt, "choices": item.choices} for item in chosen]))
    done = subprocess.run(
        [python, "-c", textwrap.dedent(PEER), str(folder), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout.splitlines()[-1])
    model, params = models.from_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    scores = logprobs.score_items(model, params, [logprobs.encode_item(tokenizer, item) for item in chosen])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=2e-4)
    gaps = [sorted(values)[-1] - sorted(values)[-2] for values in expected]
    same = [np.argmax(a) == np.argmax(b) for a, b, gap in zip(scores, expected, gaps) if gap > 1e-3]
    assert all(same)
    assert len(same) >= 95
