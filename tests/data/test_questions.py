"""Identity keys, cultures and categories, and single fields."""

import pytest

from care_jax.data.questions import (
    category_id,
    culture_id,
    is_ids,
    is_messages,
    normalise,
    parse_category,
    parse_culture,
    plain_text,
    question_key,
)
from care_jax.data.rows import fields


def test_key_ignores_width_case_and_white_space_but_not_the_culture():
    assert question_key("ＡＢＣ　def？", "chinese") == question_key(" abc \n DEF? ", "chinese")
    assert question_key("abc", "chinese") != question_key("abc", "arab")
    assert question_key(({"role": "user", "content": "abc"},), "arab") == question_key("abc", "arab")


def test_a_conversation_differs_from_its_last_turn():
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    assert question_key(turns, None) != question_key("c", None)
    assert plain_text(turns) == "user: a\nassistant: b\nuser: c"


def test_kinds_of_content():
    assert is_ids((1, 2))
    assert is_messages(({"role": "user", "content": "a"},))
    assert not any((is_ids("a"), is_messages("a"), is_ids(()), is_messages((1,))))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Native (Arab)", ("native", "arab")),
        ("foreign(Chinese)", ("foreign", "chinese")),
        ("Native（Japanese）", ("native", "japanese")),  # full-width brackets
        ("Arabic", (None, "arab")),
        ("ar", (None, "arab")),
        ("zh", (None, "chinese")),
        ("日本", (None, "japanese")),
        ("Korean", (None, "korean")),
        ("Native (Sri Lankan)", ("native", "sri_lankan")),
        ("Chinnese", (None, None)),
        ("", (None, None)),
        (None, (None, None)),
        (7, (None, None)),
    ],
)
def test_cultures(value, expected):
    assert parse_culture(value) == expected


def test_a_culture_that_the_user_names_is_known():
    assert parse_culture("Martian", frozenset({"martian"})) == (None, "martian")
    assert culture_id("العربية") == "arab"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Social norms", "norms"),
        ("CULTURAL  Entities", "entities"),
        ("cultural_commonsense", "commonsense"),
        ("Cultural opinion", "opinion"),
        ("Opinions", "opinion"),
        ("literacy", "literacy"),
        ("weather", None),
        (None, None),
        (3.5, None),
    ],
)
def test_categories(value, expected):
    assert parse_category(value) == expected


def test_a_category_that_the_user_names_is_known():
    assert parse_category("Daily life", frozenset({category_id("daily life")})) == "daily_life"


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
