"""Cultures and categories by their names."""

import pytest

from care_jax.data.cultures import category_id, culture_id, parse_category, parse_culture


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
