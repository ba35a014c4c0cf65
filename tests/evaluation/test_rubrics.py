"""The rubrics: fields, the published files, labels."""

import pytest

from care_jax.errors import UserError
from care_jax.evaluation import rubrics


@pytest.mark.parametrize("name", ["entities_opinion", "norms_commonsense", "literacy"])
def test_fields_may_hold_braces(name):
    text = rubrics.BUILT_IN[name].prompt("what is {answer}?", "{response} {x}", "a {question} \\1 {")
    assert "## Question:\nwhat is {answer}?\n" in text
    assert "## Reference answer:\n{response} {x}\n" in text
    assert "## Answer to be rated:\na {question} \\1 {\n" in text


def published(folder):
    for name in rubrics.FILES:
        (folder / f"{name}.txt").write_text(f"{name} {{question}} {{answer}} {{response}}\n## Golden answer:")
    return str(folder)


def test_criteria_both_ways_and_from_the_published_files(tmp_path):
    """The content of two of the published files is swapped."""
    folder = published(tmp_path)
    names = ("entities", "opinion", "norms", "commonsense", "literacy")
    names_by_use = {
        (source, criteria): [rubrics.choose_rubric(rubrics.load_rubrics(source, criteria), name).name for name in names]
        for source in (None, folder)
        for criteria in ("by_content", "as_published")
    }
    straight = ["entities_opinion", "entities_opinion", "norms_commonsense", "norms_commonsense", "literacy"]
    swapped = ["entities_opinion", "entities_opinion", "literacy", "literacy", "norms_commonsense"]
    assert names_by_use[None, "by_content"] == straight
    assert names_by_use[None, "as_published"] == swapped
    assert names_by_use[folder, "as_published"] == [f"{name}.txt" for name in straight]
    assert names_by_use[folder, "by_content"] == [f"{name}.txt" for name in swapped]
    norms = rubrics.choose_rubric(rubrics.load_rubrics(folder, "by_content"), "Social norms")
    assert norms.prompt("q", "a", "r").startswith("literacy q a r")
    (tmp_path / "literacy.txt").write_text("no fields")
    with pytest.raises(UserError, match=r"literacy.txt has no \{question\} and no \{response\}"):
        rubrics.load_rubrics(folder, "by_content")


@pytest.mark.parametrize(
    ("text", "score"),
    [("so: CORRECT", 1.0), ("CORRECT_BUT_WRONG_LANGUAGE", 0.0), ("CORRECT? no, INCORRECT", 0.0), ("hm", None)],
)
def test_labels_stand_for_scores(text, score):
    assert rubrics.BUILT_IN["care_pro"].parse(text) == score
