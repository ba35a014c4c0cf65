"""Prompts from the rows of a file and from the items of a task."""

import json

import pytest

from care_jax.errors import UserError
from care_jax.evaluation.answers.prompts import item_prompts, read_prompts
from care_jax.evaluation.items import Item


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_question_becomes_a_message_and_a_prompt_stays_as_it_is(tmp_path):
    rows = [{"id": 1, "question": "Tea?"}, {"prompt": "Tea is"}, {"id": 3}, {"question": "Rice?"}]
    prompts, dropped = read_prompts(write(tmp_path / "rows.jsonl", rows), limit=3)
    assert [prompt.prompt for prompt in prompts] == [
        ({"role": "user", "content": "Tea?"},), "Tea is", ({"role": "user", "content": "Rice?"},)
    ]  # fmt: skip
    assert [prompt.row for prompt in prompts] == [0, 1, 3]
    assert prompts[0].fields == rows[0]
    assert dropped["missing_field"] == 1
    assert len(read_prompts(str(tmp_path / "rows.jsonl"), limit=1)[0]) == 1


def test_a_file_without_prompts_is_refused(tmp_path):
    with pytest.raises(UserError, match="no row has a prompt: expected `question` or `prompt`"):
        read_prompts(write(tmp_path / "rows.jsonl", [{"text": "tea"}]))


def test_items_keep_their_fields_and_samples_have_different_seeds():
    (prompt,) = item_prompts([Item("7", "Tea?", "Q: Tea?", groups={"culture": "arab"})], "task")
    assert prompt.fields == {"id": "7", "task": "task", "question": "Tea?", "culture": "arab"}
    assert prompt.prompt == ({"role": "user", "content": "Q: Tea?"},)
    assert len({prompt.seed(seed, sample) for seed in range(2) for sample in range(3)}) == 6
