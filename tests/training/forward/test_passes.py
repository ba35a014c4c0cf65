"""Passes without a gradient: as many rows per microbatch as fit into the memory, and only token ids of the model."""

import jax
import numpy as np
import pytest

import care_jax.models as models
from care_jax.data import pipeline, readers
from care_jax.data.chat import Encoded, load_tokenizer
from care_jax.data.corpus import build
from care_jax.data.packing.batch import BatchShape
from care_jax.data.questions import Question, Response
from care_jax.data.rows.files import SAMPLE
from care_jax.errors import UserError
from care_jax.sharding import make_mesh
from care_jax.stopping import StopSignal
from care_jax.training.forward import passes
from care_jax.training.forward.passes import ForwardPass, check_token_ids


def test_a_pass_takes_the_largest_microbatch_that_the_memory_holds(monkeypatch):
    """8 devices and 8 rows, which the memory allows to multiply by 2, 4 or 8; the numbers are equal."""
    tokenizer = load_tokenizer("sample")
    corpus = pipeline.tokenize(readers.read("care", "sample").questions, tokenizer, max_length=128)
    counts = np.diff(corpus.first_response).tolist()
    sequences = [(q, corpus.response_id(q, number)) for q, count in enumerate(counts) for number in range(count)]
    model = models.from_config(SAMPLE / "model")
    mesh = make_mesh(1, 8, 1)
    shape = BatchShape(rows=8, row_length=128, responses=128, completion_tokens=1024)

    def run(limit, reserved=0):
        monkeypatch.setattr(passes, "memory_limit", lambda: limit)
        one = ForwardPass(model, corpus, shape, mesh, StopSignal(), reserved)
        found = one.run(sequences, {"params": params})
        (plan,) = one._plans.values()
        return plan.shape.rows, found

    with jax.set_mesh(mesh):
        params = models.init_params(model, 0, mesh)
        rows, expected = run(None)
        assert rows == 8
        most, found = run(2**34)
        assert most == 64
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert run(2**20)[0] == 8
        assert run(2**34, reserved=2**34)[0] == 8
        assert any(run(limit)[0] in (16, 32) for limit in range(4 * 2**20, 24 * 2**20, 2**21))


def corpus(prompt, completion):
    questions = [
        Question((1, 2), (Response((3,), 1.0, "", 0),), "first"),
        Question(tuple(prompt), (Response(tuple(completion), 1.0, "", 7),), "second"),
    ]
    return build(questions, [Encoded([1, 2], [[3]]), Encoded(prompt, [completion])], 16)


def test_ids_of_the_model_are_fine():
    check_token_ids(corpus([4, 5], [6, 7]), 8)


@pytest.mark.parametrize(
    ("prompt", "completion", "found"),
    [([4, 9], [6], "token id 9 in the prompt"), ([4], [6, -1], "token id -1 in the completion")],
)
def test_an_id_that_the_model_does_not_know(prompt, completion, found):
    with pytest.raises(UserError, match=rf"row 7 \(.*{found}; the model has 0 to 7"):
        check_token_ids(corpus(prompt, completion), 8)
