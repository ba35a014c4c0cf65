"""Rows of prompts and choices: what each predicting token sees, and how rows are filled."""

import numpy as np

from care_jax.evaluation.answers import choice_rows
from care_jax.evaluation.answers.choice_rows import EncodedItem


def test_a_packed_predictor_sees_its_prompt_and_what_is_before_it_in_its_choice():
    """By the rule of `attention.visible`: its own segment and that of its prompt, up to itself."""
    rng = np.random.default_rng(0)

    def ids(most):
        return tuple(rng.integers(1, 999, rng.integers(1, most)).tolist())

    items = [EncodedItem(ids(60), tuple(ids(6) for _ in range(1 + number % 4))) for number in range(40)]
    for examples in (ids(90) + ids(40), tuple(range(1, 51))):  # the same beginning, a letter each
        items += [EncodedItem(examples + ids(20) + (1,), ((7,), (8,))) for _ in range(9)]
    families = choice_rows.find_families(items)
    assert sorted(number for numbers, _ in families for number in numbers) == list(range(58))
    assert sum(len(numbers) > 1 and shared >= 50 for numbers, shared in families) == 2
    blocks = choice_rows.make_blocks(items, families, 192)
    assert max(block.length for block in blocks) <= 192
    rows = choice_rows.pack_blocks(blocks, 192)
    capacity = max(sum(block.targets for block in row) for row in rows)
    arrays = choice_rows.fill_rows(rows, len(rows), 192, capacity)
    tokens, positions, segments, prompts, places, targets = arrays
    scored_choices = []
    for r, row in enumerate(rows):
        slot = 0
        for number, choice, _ in (scored for block in row for scored in block.choices):
            scored_choices.append((number, choice))
            for place in range(len(choice)):
                at = places[r, slot]
                visible = [segments[r, j] in (segments[r, at], prompts[r, at]) for j in range(at + 1)]
                seen = [(positions[r, j], tokens[r, j]) for j in range(at + 1) if visible[j]]
                assert seen == list(enumerate([*items[number].prompt, *choice[:place]]))
                assert targets[r, slot] == choice[place]
                slot += 1
    for number, item in enumerate(items):
        assert [choice for owner, choice in scored_choices if owner == number] == list(item.choices)
