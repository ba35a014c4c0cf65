"""Generation with a cache gives the tokens that a pass over the complete row would choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax import sharding
from care_jax.errors import UserError
from care_jax.models import sampling
from tests.models.tiny_models import tiny_model

PROMPTS = [[int(x) for x in np.random.default_rng(n).integers(1, 64, size)] for n, size in enumerate((3, 17, 9, 1, 12))]


def whole_rows(tiny, prompt, count):
    """Decodes greedily without a cache, through the fixture's compiled shape."""
    tokens = list(prompt)
    for _ in range(count):
        logits = tiny.logits([[{"tokens": np.array(tokens)}]])[0]
        tokens.append(int(logits[len(tokens) - 1].argmax()))
    return tuple(tokens[len(prompt) :])


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gemma3_text"])
def test_greedy_answers_are_those_without_a_cache(name):
    """16 tokens exceed the windows of 5; soft caps and both rotary bases are used."""
    tiny = tiny_model(name)
    answers = list(sampling.generate(tiny.model, tiny.params, PROMPTS, max_tokens=16, batch_size=4))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer == sampling.GeneratedAnswer(whole_rows(tiny, prompt, 16), "length")


def test_an_answer_depends_on_its_seed_and_not_on_its_batch():
    tiny = tiny_model("qwen2")
    settings = {"max_tokens": 8, "temperature": 1.0, "top_p": 0.9}
    together = list(
        sampling.generate(tiny.model, tiny.params, PROMPTS, seeds=[5, 6, 7, 8, 9], batch_size=4, **settings)
    )
    alone = list(sampling.generate(tiny.model, tiny.params, PROMPTS[3:], seeds=[8, 9], batch_size=4, **settings))
    assert alone == together[3:]
    again = list(sampling.generate(tiny.model, tiny.params, PROMPTS[3:], seeds=[1, 2], batch_size=4, **settings))
    assert again != alone


def test_a_stop_token_ends_its_own_row_only():
    tiny = tiny_model("qwen2")
    settings = {"max_tokens": 16, "batch_size": 4}
    free = list(sampling.generate(tiny.model, tiny.params, PROMPTS[:4], **settings))
    stop = free[0].tokens[4]
    stopped = list(sampling.generate(tiny.model, tiny.params, PROMPTS[:4], stop_ids=[stop], **settings))
    for before, after in zip(free, stopped, strict=True):
        end = before.tokens.index(stop) if stop in before.tokens else None
        assert after == sampling.GeneratedAnswer(before.tokens[:end], "length" if end is None else "stop")


def test_a_mesh_gives_the_same_answers():
    tiny = tiny_model("llama3")
    mesh = sharding.make_mesh(2, 2, 2)
    alone = list(sampling.generate(tiny.model, tiny.params, PROMPTS, max_tokens=6, batch_size=4))
    assert list(sampling.generate(tiny.model, tiny.params, PROMPTS, max_tokens=6, batch_size=4, mesh=mesh)) == alone
    with pytest.raises(UserError, match="batch_size"):
        list(sampling.generate(tiny.model, tiny.params, PROMPTS, batch_size=3, mesh=mesh))


def test_the_nucleus_is_the_smallest_set_that_reaches_p():
    logits = jnp.log(jnp.asarray([[0.1, 0.5, 0.15, 0.25]]))
    kept = [jnp.isfinite(sampling.nucleus(logits, p))[0].tolist() for p in (0.4, 0.5, 0.6, 0.76, 1.0)]
    assert kept == [
        [False, True, False, False],
        [False, True, False, False],
        [False, True, False, True],
        [False, True, True, True],
        [True, True, True, True],
    ]


def test_sampling_follows_the_probabilities():
    tiny = tiny_model("qwen2")
    logits = tiny.logits([[{"tokens": np.array(PROMPTS[0])}]])[0][len(PROMPTS[0]) - 1]
    probabilities = np.asarray(jax.nn.softmax(logits / 1.5))
    answers = sampling.generate(
        tiny.model, tiny.params, [PROMPTS[0]] * 1024, max_tokens=1, temperature=1.5, batch_size=256
    )
    counts = np.bincount([answer.tokens[0] for answer in answers], minlength=64)
    deviation = np.sqrt(1024 * probabilities * (1 - probabilities)) + 1
    assert (np.abs(counts - 1024 * probabilities) < 4.5 * deviation).all()


def test_mistakes_are_named():
    tiny = tiny_model("llama3")
    for wrong, prompts in (
        ({"top_p": 0.0}, PROMPTS),
        ({"temperature": -1.0}, PROMPTS),
        ({}, [[1], []]),
        ({}, [[1, 64]]),
    ):
        with pytest.raises(UserError, match="generate: "):
            list(sampling.generate(tiny.model, tiny.params, prompts, **wrong))
