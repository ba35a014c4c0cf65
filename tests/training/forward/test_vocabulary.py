"""Token ids that the model does not know are refused, with the row and the part that hold them."""

import pytest

from care_jax.data.chat import Encoded
from care_jax.data.corpus import build
from care_jax.data.questions import Question, Response
from care_jax.errors import UserError
from care_jax.training.forward.vocabulary import check_token_ids


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
