"""Compares every family with the numbers of transformers (goldens): padded, packed and with shared prompts."""

import jax
import numpy as np
import pytest

import care_jax.models as models
from tests.models.tiny_models import GOLDEN


def logps(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the log-probability of each target, from the logits that predict it."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    table = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return table[np.arange(len(targets)), targets]


def examples(tiny):
    return [row[:length] for row, length in zip(tiny.golden["tokens"], tiny.golden["lengths"])]


def test_padded_logits_are_those_of_transformers(tiny):
    logits = tiny.logits([[{"tokens": tokens}] for tokens in examples(tiny)])
    assert np.isfinite(logits).all()
    for row, length in enumerate(tiny.golden["lengths"]):
        expected = tiny.golden["logits"][row, :length]
        np.testing.assert_allclose(logits[row, :length], expected, atol=1e-4)
        np.testing.assert_array_equal(logits[row, :length].argmax(-1), expected.argmax(-1))


def test_packed_logits_are_those_of_transformers_and_of_each_alone(tiny):
    first, second = examples(tiny)
    packed = tiny.logits([[{"tokens": first}, {"tokens": second}]])[0]
    alone = tiny.logits([[{"tokens": first}], [{"tokens": second}]])
    split = len(first)
    for row, tokens, ours in ((0, first, packed[:split]), (1, second, packed[split : split + len(second)])):
        expected = tiny.golden["logits"][row, : len(tokens)]
        np.testing.assert_allclose(ours, expected, atol=1e-4)
        np.testing.assert_array_equal(ours.argmax(-1), expected.argmax(-1))
        lonely = logps(alone[row, : len(tokens) - 1], tokens[1:])
        np.testing.assert_allclose(logps(ours[:-1], tokens[1:]), lonely, rtol=0, atol=1e-5)


def response_logps(logits: np.ndarray, prompt_end: int, start: int, response: np.ndarray) -> np.ndarray:
    predictors = np.concatenate([logits[prompt_end - 1 : prompt_end], logits[start : start + len(response) - 1]])
    return logps(predictors, response)


def test_shared_prompts_change_no_response(tiny):
    prompt, first, second = (tiny.golden[name] for name in ("prompt", "first", "second"))
    end = len(prompt)
    row = [
        {"tokens": prompt, "id": 1},
        {"tokens": first, "id": 2, "prompt": 1, "start": end},
        {"tokens": second, "id": 3, "prompt": 1, "start": end},
    ]
    # The second row starts with another sequence, so that the prompt is not at the start of the row.
    stranger = {"tokens": np.arange(1, 8), "id": 9}
    shared = tiny.logits([row, [stranger, *row]])
    alone = tiny.logits([[{"tokens": np.concatenate([prompt, response])}] for response in (first, second)])
    for place, shift in ((0, 0), (1, 7)):
        for which, response, start in ((0, first, end), (1, second, end + len(first))):
            ours = response_logps(shared[place], end + shift, start + shift, response)
            lonely = response_logps(alone[which], end, end, response)
            np.testing.assert_allclose(ours, lonely, rtol=0, atol=1e-5)
            np.testing.assert_allclose(ours.sum(), tiny.golden["logps"][which], rtol=1e-5, atol=1e-4)


def test_a_token_changes_nothing_before_it_nor_beside_its_segment(tiny):
    first, second = examples(tiny)
    before = tiny.logits([[{"tokens": first}, {"tokens": second}]])[0]
    changed = first.copy()
    changed[12] = changed[12] % 60 + 1
    after = tiny.logits([[{"tokens": changed}, {"tokens": second}]])[0]
    np.testing.assert_array_equal(after[:12], before[:12])
    np.testing.assert_array_equal(after[len(first) :], before[len(first) :])
    assert np.abs(after[12 : len(first)] - before[12 : len(first)]).max() > 1e-2


def test_every_weight_is_declared_as_it_is_loaded(tiny):
    declared = models.declarations(tiny.model.arch)
    leaf = lambda x: isinstance(x, models.Weight)  # noqa: E731
    assert jax.tree.structure(declared, is_leaf=leaf) == jax.tree.structure(tiny.params)
    jax.tree.map(
        lambda weight, array: np.testing.assert_equal(weight.shape, array.shape), declared, tiny.params, is_leaf=leaf
    )
    decay = models.decay_mask(tiny.model.arch)
    assert not decay["norm"]["weight"]
    assert not decay["blocks"]["attn_norm"]["weight"]
    assert decay["embed"]["weight"]
    assert decay["blocks"]["attn"]["q"]["weight"]
    if "bias" in decay["blocks"]["attn"]["q"]:
        assert not decay["blocks"]["attn"]["q"]["bias"]
    assert models.num_params(tiny.model.arch) == sum(x.size for x in jax.tree.leaves(tiny.params))


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("mistral", [5, 5]),
        ("qwen2", [None, 5, 5]),
        ("gemma2", [5, None, 5]),
        ("gemma3_text", [5, 5, 5, 5, 5, None, 5]),
        ("llama", [None, None]),
    ],
)
def test_layers_have_the_windows_of_their_family(name, windows):
    arch = models.read_config(GOLDEN / name)
    assert [arch.kinds[kind].window for kind in arch.layer_kinds] == windows
