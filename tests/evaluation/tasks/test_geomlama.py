"""GeoMLAMA: several right candidates."""

import pytest

from tests.evaluation.tasks.helpers import answer, read, result, write


def test_geomlama_counts_the_overlap_of_the_best_n(tmp_path):
    path = write(
        tmp_path / "gd_prompt_en.tsv",
        "Prompt\tCorresponding Questions\tAns\tCandidate Ans\tContext\n"
        "In China people eat with <mask>.\tWhat do they eat with?\tchopsticks, spoons\tforks, chopsticks, spoons\t\n"
        "\t\t\t\t\nIn Japan <mask> is drunk.\tWhat is drunk?\ttea\ttea，coffee\t\n",
    )
    task_items = read("geomlama", path)
    assert [item.choices[0] for item in task_items.items] == [
        "In China people eat with forks.",
        "In Japan tea is drunk.",
    ]
    ids = [item.id for item in task_items.items]
    assert all(item.standalone for item in task_items.items)
    scores = result("geomlama", path, [answer(ids[0], logps=(-1.0, -2.0, -3.0)), answer(ids[1], "Coffee, then tea")])
    assert scores["score"] == pytest.approx((0.5 + 0.0) / 2)
