"""BLEnD's multiple-choice questions."""

import json

import pytest

from care_jax.evaluation import tasks
from care_jax.evaluation.items import Options
from tests.evaluation.tasks.helpers import answer


def choices_file(tmp_path):
    rows = [
        ("a_0", "a", "China", {"A": "golf", "B": "tennis"}, "B"),
        ("a_1", "a", "China", {"A": "rugby", "B": "tennis", "C": "golf"}, "B"),
        ("b_0", "b", "US", {"A": "dummy", "B": "Tea"}, "A"),
    ]
    lines = ["MCQID,ID,country,prompt,choices,choice_countries,answer_idx"]
    for mcqid, id_, country, options, right in rows:
        quoted = json.dumps(options).replace('"', '""')
        lines.append(f'{mcqid},{id_},{country},"Pick one of {mcqid}","{quoted}",{{}},{right}')
    path = tmp_path / "mc_questions_file-1.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_multiple_choice_micro_and_per_id(tmp_path):
    path = choices_file(tmp_path)
    answers = [answer("a_0", '{"answer_choice":"B"}'), answer("a_1", "The answer is B"), answer("b_0", "A")]
    for mode, micro, macro in (("parity", 2 / 3, (0.5 + 1) / 2), ("strict", 1.0, 1.0)):
        task, options = tasks.find("blend_mc", Options(mode=mode))
        result, _ = tasks.score(task, tasks.read(task, path, options), answers, options)
        assert result["score"] == pytest.approx(micro)
        assert result["scores"]["acc per ID (macro)"] == pytest.approx(macro)
        assert result["failed"] == (1 if mode == "parity" else 0)  # 'T' is no option
    assert result["by"]["country"] == {"China": 1.0, "US": 1.0}
