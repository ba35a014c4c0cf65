"""Question keys, kinds of content, cultures and categories."""

import pytest

from care_jax.data.questions import (
    category_id,
    culture_id,
    is_ids,
    is_messages,
    parse_category,
    parse_culture,
    plain_text,
    question_key,
)


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
