"""Compares with torch and transformers themselves: gradients, folders, class defaults, and real models."""

import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import care_jax.models as models
from care_jax.models.hf.export import file_tensors, leaf_at
from tests.models.tiny_models import FAMILIES, GOLDEN, tiny_model

torch = pytest.importorskip("torch", reason="the parity extra")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import make_golden_models as golden

pytestmark = pytest.mark.parity


def load_torch(folder, dtype=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or torch.float32, attn_implementation="eager"
    )
    return model.eval()


def our_logps(model, params, prompt, response):
    """Returns the summed log-probability of a response [N] after its prompt, alone in its row."""
    tokens = jnp.concatenate([prompt, response])[None]
    table = jax.nn.log_softmax(model.apply({"params": params}, tokens)[0])[len(prompt) - 1 : -1]
    return jnp.take_along_axis(table, response[:, None], axis=1).sum()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_a_dpo_loss_are_those_of_torch(name):
    tiny = tiny_model(name)
    theirs = load_torch(GOLDEN / name)
    prompt, chosen, rejected = (tiny.golden[key] for key in ("prompt", "first", "second"))
    reference = -20.0, -25.0

    margin = (golden.logps(theirs, prompt, chosen) - reference[0]) - (
        golden.logps(theirs, prompt, rejected) - reference[1]
    )
    loss = -torch.nn.functional.logsigmoid(0.1 * margin)
    loss.backward()

    @jax.jit
    @jax.value_and_grad
    def ours(params):
        ids = [jnp.asarray(x) for x in (prompt, chosen, rejected)]
        margin = (our_logps(tiny.model, params, ids[0], ids[1]) - reference[0]) - (
            our_logps(tiny.model, params, ids[0], ids[2]) - reference[1]
        )
        return -jax.nn.log_sigmoid(0.1 * margin)

    our_loss, gradient = ours(tiny.params)
    np.testing.assert_allclose(our_loss, loss.item(), rtol=1e-5)
    expected = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    names = []
    for name, weight, path, layer in file_tensors(models.declarations(tiny.model.arch)):
        leaf = np.asarray(leaf_at(gradient, path))
        leaf = (leaf if layer is None else leaf[layer]).reshape(weight.hf_shape)
        error = np.abs(leaf - expected[name]).max() / np.abs(expected[name]).max()
        assert error < 1e-3, (name, error)
        names.append(name)
    assert set(names) == set(expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_an_export(name, tmp_path):
    tiny = tiny_model(name)
    models.save_pretrained(tmp_path / "out", tiny.model, tiny.params)
    theirs = load_torch(tmp_path / "out")
    with torch.no_grad():
        logits = theirs(torch.tensor(tiny.golden["tokens"][:1], dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits, tiny.golden["logits"][:1], atol=2e-5)
    # And what transformers itself saves, in its own spelling, can be read.
    theirs.save_pretrained(tmp_path / "again")
    model, params = models.from_pretrained(tmp_path / "again")
    assert model.arch == tiny.model.arch
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "gemma2", "gemma3_text"])
def test_bfloat16_is_as_near_to_float32_as_transformers_is(name):
    tiny = tiny_model(name)
    tokens = tiny.golden["tokens"][:1]
    with torch.no_grad():
        theirs = (
            load_torch(GOLDEN / name, torch.bfloat16)(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()
        )
    model, params = models.from_pretrained(GOLDEN / name, dtype="bfloat16")
    ours = np.asarray(model.apply({"params": params}, jnp.asarray(tokens)))
    errors = [np.sqrt(np.mean((logits - tiny.golden["logits"][:1]) ** 2)) for logits in (ours, theirs)]
    assert errors[0] < 1.25 * errors[1], errors


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_absent_keys_mean_what_transformers_says(family):
    theirs = transformers.AutoConfig.for_model(family)
    written = json.loads(theirs.to_json_string(use_diff=False))
    sparse = models.FAMILIES[family].read({"model_type": family})
    assert sparse == models.FAMILIES[family].read(written)


def care_items(shared, tokenizer, per_language=3, limit=160):
    """Returns (prompt ids, answer ids) of real CARE questions and answers."""
    for name in ("Arabic", "Chinese", "Japanese"):
        rows = json.loads((shared / "data" / "care_eval" / f"{name}-test.json").read_text(encoding="utf-8"))
        for row in rows[:: len(rows) // per_language][:per_language]:
            if tokenizer.chat_template:
                prompt = tokenizer.apply_chat_template(
                    [{"role": "user", "content": row["question"]}], add_generation_prompt=True, tokenize=False
                )
                ids = tokenizer(prompt, add_special_tokens=False).input_ids
            else:
                ids = tokenizer(row["question"] + "\n").input_ids
            answer = tokenizer(row["answer"], add_special_tokens=False).input_ids
            yield np.array(ids[-limit:]), np.array(answer[:limit])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m"])
def test_real_models_give_the_log_probabilities_of_transformers(name, real_models, shared):
    folder = real_models / name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = load_torch(folder)
    model, params = models.from_pretrained(folder)
    half, _ = models.from_pretrained(folder, dtype="bfloat16", param_dtype="float32")

    def padded(model):
        @jax.jit
        def table(params, tokens, segments):
            return jax.nn.log_softmax(model.apply({"params": params}, tokens, None, segments)[0])

        return table

    full_table, half_table = padded(model), padded(half)
    for prompt, answer in care_items(shared, tokenizer):
        with torch.no_grad():
            expected = golden.logps(theirs, prompt, answer).item()
        tokens = np.concatenate([prompt, answer])
        row = np.zeros((1, 320), np.int32)
        row[0, : len(tokens)] = tokens
        segments = jnp.asarray(np.arange(320)[None] < len(tokens), jnp.int32)
        place = np.arange(len(prompt) - 1, len(tokens) - 1)
        ours, ours_half = (
            np.asarray(table(params, jnp.asarray(row), segments))[place, answer].sum(dtype=np.float64)
            for table in (full_table, half_table)
        )
        assert abs(ours - expected) < 1e-3 * abs(expected), (ours, expected)
        assert abs(ours_half - expected) < 1e-2 * abs(expected), (ours_half, expected)


@pytest.mark.slow
def test_smollm2_is_saved_as_it_was_read(real_models, tmp_path):
    from safetensors.torch import load_file

    folder = real_models / "smollm2-135m-instruct"
    model, params = models.from_pretrained(folder)
    models.save_pretrained(tmp_path / "out", model, params, source=folder)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in folder.iterdir()} <= set(os.listdir(tmp_path / "out"))
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("name", ["llama3", "gemma3_text"])
def test_peft_agrees_on_an_adapter(name, tmp_path):
    peft = pytest.importorskip("peft")
    from care_jax.models import lora as lora_lib
    from tests.models.test_lora import adapted

    tiny, model, _, trained = adapted(name, r=4, alpha=6.0)
    tokens = tiny.golden["tokens"][:1]
    ours = np.asarray(model.apply({"params": tiny.params, "lora": trained}, jnp.asarray(tokens)))
    lora_lib.save_adapter(tmp_path / "ours", model, trained, base=str(tiny.folder))
    theirs = peft.PeftModel.from_pretrained(load_torch(tiny.folder), tmp_path / "ours")
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(ours, logits, atol=1e-4)
    assert np.abs(logits - tiny.golden["logits"][:1]).max() > 0.1
    # And what PEFT writes, with its targets as full paths, can be read.
    theirs.save_pretrained(tmp_path / "theirs")
    again, lora = lora_lib.load_adapter(tmp_path / "theirs", tiny.model)
    assert again.lora_scale == model.lora_scale
    jax.tree.map(np.testing.assert_array_equal, lora, trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m"])
def test_greedy_answers_of_a_real_model_are_those_of_transformers(name, real_models, shared):
    from care_jax.models import sampling

    folder = real_models / name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = [[int(token) for token in prompt] for prompt, _ in care_items(shared, tokenizer, per_language=7)][:20]
    model, params = models.from_pretrained(folder)
    stop = sampling.eos_ids(folder)
    answers = list(sampling.generate(model, params, prompts, max_tokens=40, stop_ids=stop, batch_size=10))
    theirs = load_torch(folder)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False
            )
        expected = [token for token in out[0, len(prompt) :].tolist() if token not in stop]
        assert list(answer.tokens) == expected
