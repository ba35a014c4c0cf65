"""Log-probabilities of options: packed rows against each text alone; SmolLM2 against transformers."""

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
    """Letters (one token each), wordings of several tokens, whole texts; prompts of many lengths."""
    lettered = [
        Item(
            str(n), "q", f"Question {n}: {'tea and rice ' * (n % 7)}?\nA. x\nB. y\nAnswer:", choices=(" A", " B", " C")
        )
        for n in range(9)
    ]
    examples = "".join(f"Question {n}: what is drunk?\nA. tea\nB. rice\nAnswer: A\n\n" for n in range(4))
    lettered += [Item(f"s{n}", "q", f"{examples}Question: {n}?\nAnswer:", choices=(" A", " B")) for n in range(5)]
    worded = [Item("w", "q", "Guests are given", choices=(" green tea with mint", " bread", " nothing at all to eat"))]
    whole = [Item("t", "q", "", choices=("喝茶是习惯", "He drank tea."), whole=True)]
    return [*lettered, *worded, *whole]


@pytest.mark.parametrize("devices", [None, 2])
def test_packed_rows_equal_each_text_alone(tmp_path, devices):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = models.from_config(tmp_path)
    mesh = None if devices is None else sharding.make_mesh(1, devices, 1, devices=jax.devices()[:devices])
    params = models.init_params(model, 0, mesh)
    tokenizer = load_tokenizer(str(SAMPLE / "model"))
    asked = [logprobs.encode_item(tokenizer, item) for item in items()]
    found = logprobs.score_items(model, params, asked, mesh)
    alone = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens[None])[0]))
    assert [len(one) for one in found] == [len(one.texts) for one in asked]
    if devices is not None:
        asked, found = asked[-2:], found[-2:]
    for one, values in zip(asked, found):
        for text, value in zip(one.texts, values):
            ids = np.zeros(256, np.int32)
            size = len(one.prompt) + len(text)
            ids[:size] = [*one.prompt, *text]
            logps = np.asarray(alone(jnp.asarray(ids)))
            expected = sum(logps[place - 1, ids[place]] for place in range(len(one.prompt), size))
            np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5)


def test_a_packed_predictor_sees_its_prompt_and_what_is_before_it_in_its_text():
    """By the rule of visibility (`attention.visible`): its own segment and its prompt's, up to itself."""
    rng = np.random.default_rng(0)

    def ids(most):
        return tuple(rng.integers(1, 999, rng.integers(1, most)).tolist())

    asked = [logprobs.EncodedItem(ids(60), tuple(ids(6) for _ in range(1 + number % 4))) for number in range(40)]
    for examples in (ids(90) + ids(40), tuple(range(1, 51))):  # behind the same beginning, a letter each
        asked += [logprobs.EncodedItem(examples + ids(20) + (1,), ((7,), (8,))) for _ in range(9)]
    families = logprobs._families(asked)
    assert sorted(number for numbers, _ in families for number in numbers) == list(range(58))
    assert sum(len(numbers) > 1 and shared >= 50 for numbers, shared in families) == 2
    bundles = logprobs._bundles(asked, families, 192)
    assert max(bundle.length for bundle in bundles) <= 192
    rows = logprobs._pack(bundles, 192)
    capacity = max(sum(bundle.targets for bundle in row) for row in rows)
    arrays = logprobs._fill(rows, len(rows), 192, capacity)
    tokens, positions, segments, prompts, places, targets = arrays
    met = []
    for r, row in enumerate(rows):
        slot = 0
        for number, text, _ in (text for bundle in row for text in bundle.texts):
            met.append((number, text))
            for place in range(len(text)):
                at = places[r, slot]
                own = [segments[r, j] in (segments[r, at], prompts[r, at]) for j in range(at + 1)]
                seen = [(positions[r, j], tokens[r, j]) for j in range(at + 1) if own[j]]
                assert seen == list(enumerate([*asked[number].prompt, *text[:place]]))
                assert targets[r, slot] == text[place]
                slot += 1
    for number, one in enumerate(asked):
        assert [text for owner, text in met if owner == number] == list(one.texts)


def test_prompt_and_choice_are_tokenized_together():
    tokenizer = load_tokenizer(str(SAMPLE / "model"))
    one = logprobs.encode_item(tokenizer, items()[0])
    whole = tokenizer(items()[0].prompt + " A")["input_ids"]
    assert [*one.prompt, *one.texts[0]] == whole
    templated = logprobs.encode_item(tokenizer, items()[0], template="model")
    assert len(templated.prompt) > len(one.prompt)


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
    """CARE's reference answers as options: each question with its own and those of the next three."""
    from care_jax.evaluation.items import Options
    from care_jax.evaluation.tasks.rated import read_care

    own = [item for item in read_care(str(shared / "data" / "care_eval"), Options()).items if item.id.endswith("3")]
    made = []
    for number in range(100):
        near = [own[(number + step) % len(own)] for step in range(4)]
        lines = [f"{letter}. {one.fields['reference'][:60]}" for letter, one in zip("ABCD", near)]
        prompt = "\n".join([near[number % 4].question[:200], *lines, "Answer:"])
        made.append(Item(str(number), near[0].question, prompt, choices=(" A", " B", " C", " D")))
    return made


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_equals_transformers_on_a_hundred_items(shared, real_models, tmp_path):
    """The peer runs in the interpreter named by CARE_JAX_PARITY_PYTHON, or in this one where it has torch."""
    python = os.environ.get("CARE_JAX_PARITY_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch, transformers"], capture_output=True, check=False).returncode:
        pytest.skip("no torch here: name a Python that has it by CARE_JAX_PARITY_PYTHON")
    folder = pathlib.Path(real_models) / "smollm2-135m-instruct"
    made = hundred(shared)
    path = tmp_path / "items.json"
    path.write_text(json.dumps([{"prompt": item.prompt, "choices": item.choices} for item in made]))
    done = subprocess.run(
        [python, "-c", textwrap.dedent(PEER), str(folder), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout.splitlines()[-1])
    model, params = models.from_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    found = logprobs.score_items(model, params, [logprobs.encode_item(tokenizer, item) for item in made])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
    gaps = [sorted(values)[-1] - sorted(values)[-2] for values in expected]
    same = [np.argmax(a) == np.argmax(b) for a, b, gap in zip(found, expected, gaps) if gap > 1e-3]
    assert all(same)
    assert len(same) >= 95
