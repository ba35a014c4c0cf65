"""What is read from texts: options and ratings."""

import pytest

from care_jax.evaluation.tasks import parsing

LETTERS = ("A", "B", "C", "D")
CHOICES = ("rice", "brown rice", "tea", "noodles")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (c) because", "C"),
        ("B. brown rice", "B"),
        ("**D**", "D"),
        ("Ｂ", "B"),
        ("ب", "B"),
        ("الإجابة: ج", "C"),
        ("答案是 C。", "C"),
        ("正解は「D」です", "D"),
        ("The answer is B", "B"),
        ("A dish of noodles, so the answer is D.", "D"),
        ("I think it is C.", "C"),
        ("They drink tea there", "C"),
        ("brown rice", "B"),  # holds 'rice' too, which is within it
        ("Tea or noodles", None),
        ("", None),
        ("E", None),
        ("Both A and C", None),
    ],
)
def test_the_option_that_a_text_chooses(text, letter):
    assert parsing.option_letter(text, LETTERS, CHOICES) == letter


BLEND = {"A": "basketball", "B": "Football", "C": "rugby"}


@pytest.mark.parametrize(
    ("text", "official", "robust"),
    [
        ('{"answer_choice":"B"}', "B", "B"),
        ('Sure. ```json\n{"answer_choice": "C",}\n```', "C", "C"),
        ('{"answer_choice":"A"} no, {"answer_choice":"B"}', "B", "B"),
        ('{"answer_choice":"rugby"}', "C", "C"),
        ('{"answer_choice":"Football"}', "B", "B"),  # F is no option: by its wording
        ('{"answer_choice":"football"}', None, "B"),
        ('{"answer_choice":"Z"}', None, None),
        ("The answer is B", "T", "B"),  # the published script's trap
        ("b", None, "B"),
        ("", None, None),
    ],
)
def test_blend_choices_by_both_parsers(text, official, robust):
    assert parsing.blend_choice(text, BLEND, robust=False) == official
    assert parsing.blend_choice(text, BLEND, robust=True) == robust


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7.0),
        ("good\nrating:[[ 8.5 ]]", 8.5),
        ("**Rating**: [[7]]", 7.0),
        ("**Rating: [[7]]**", 7.0),
        ("Rating： ［［７］］", 7.0),
        ("Rating: 【【9】】", 9.0),
        ("Rating: [[7/10]]", 7.0),
        ("Rating: [[3]] at first, but in the end Rating: [[6]]", 6.0),
        ("Rating: [[10]]", 10.0),
        ("Rating: [[11]]", None),
        ("Rating: [[0]]", None),
        ("Rating: 7", None),
        ("[[7]]", None),
        ("Rating: [[seven]]", None),
        ("", None),
    ],
)
def test_ratings(text, rating):
    assert parsing.rating(text) == rating
