"""What must be equal for a run to resume, and how a difference is named."""

from care_jax.training.run.identity import Identity

BEFORE = Identity({"a.jsonl": "1" * 64, "b.jsonl": "2" * 64}, "c" * 64, "t" * 64, "w" * 64)


def test_equal_content_has_no_differences():
    assert BEFORE.differences(Identity(**vars(BEFORE))) == []


def test_a_file_that_changed_is_named_and_the_corpus_is_not():
    now = Identity({"a.jsonl": "9" * 64, "b.jsonl": "2" * 64}, "d" * 64, "t" * 64, "x" * 64)
    assert BEFORE.differences(now) == [
        f"data file a.jsonl: sha256 {'1' * 12} then, {'9' * 12} now",
        f"the weights of model.path: {'w' * 12} then, {'x' * 12} now",
    ]


def test_the_same_questions_may_come_from_another_file():
    moved = Identity({"elsewhere.jsonl": "1" * 64}, "c" * 64, "t" * 64, "w" * 64)
    assert BEFORE.differences(moved) == []
    other = Identity({"elsewhere.jsonl": "1" * 64}, "d" * 64, "t" * 64, "w" * 64)
    assert BEFORE.differences(other) == [f"the data that were read: {'c' * 12} then, {'d' * 12} now"]
