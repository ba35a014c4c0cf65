"""Single fields of a row."""

import pytest

from care_jax.data.questions import normalise
from care_jax.data.rows import fields


@pytest.mark.parametrize("value", [7, 7.0, "7", "7.0", " 7 ", "７", "７．０", "٧"])
def test_ratings_of_every_spelling(value):
    assert fields.rating(value, "rating", 1.0, 10.0) == 7.0


@pytest.mark.parametrize(
    "value",
    ["", " ", None, "N/A", "7/10", "1e1", "nan", "inf", "-", 0, 11, "0.5", True, [7], {"a": 7}, float("nan"), 10**400],
)
def test_what_is_no_rating(value):
    with pytest.raises(fields.BadField) as caught:
        fields.rating(value, "rating", 1.0, 10.0)
    assert caught.value.reason == "invalid_rating"


def test_text_is_kept_byte_for_byte():
    odd = " \u200bA\u0301\t🤪\r\n\n終 "
    assert fields.text(odd, "response", "empty_response") == odd
    assert normalise(odd) != odd


@pytest.mark.parametrize("value", [None, "", " \n", 3, ["a"], {"a": "b"}])
def test_what_is_no_text(value):
    with pytest.raises(fields.BadField):
        fields.text(value, "response", "empty_response")


def test_half_a_surrogate_pair_is_unreadable():
    with pytest.raises(fields.BadField) as caught:
        fields.text("a\ud83d", "response", "empty_response")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (0, False), ("1", True), (" False ", False), (1.0, True)]
)
def test_labels(value, expected):
    assert fields.label(value) is expected


@pytest.mark.parametrize("value", [None, 2, "maybe", [], float("nan")])
def test_what_is_no_label(value):
    with pytest.raises(fields.BadField):
        fields.label(value)


@pytest.mark.parametrize("value", [[], None, "1 2", [1, True], [1, -1], [1, 2.0], [None], [2**31], [[1]]])
def test_what_are_no_token_ids(value):
    with pytest.raises(fields.BadField):
        fields.ids(value, "prompt_ids", "empty_question")


def test_message_parts_join():
    turns = fields.messages(
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}], "prompt", "x"
    )
    assert turns == ({"role": "user", "content": "ab"},)
