"""What a study keeps, what it refuses, how it pauses for a judge, and how it survives a kill.

Also tests `cli/study.py`.
"""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from care_jax import cli
from care_jax.errors import UserError
from care_jax.evaluation.answers.snippets import keep_best
from care_jax.study import spec, stages
from tests.study.example import STUDY, study_of
from tests.test_end_to_end import environment


def test_a_finished_run_with_other_settings_is_refused(finished, tmp_path):
    other = study_of(tmp_path, arms={"dpo": {"loss.beta": 0.2}, "simpo": STUDY["arms"]["simpo"]})
    with pytest.raises(UserError, match=r"finished run with other settings: loss.beta: 0.1 there, 0.2 now"):
        stages.run(other)


def test_unfinished_runs_are_listed(finished, capsys):
    run = spec.planned_runs(finished)[3]
    shutil.rmtree(run.folder / "export")
    path = pathlib.Path(finished.output_dir) / "again.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "output_dir": finished.output_dir}))
    assert cli.main(["study", str(path), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in listed] == [run.name]
    assert listed[0].endswith(f"--run {run.name}")


def test_search_snippets_judged_by_files_pause_and_continue(tmp_path, capsys):
    data = tmp_path / "care.jsonl"
    questions = ["ما هو الشاي؟", "ما هي القهوة؟"]
    data.write_text("".join(
        json.dumps({"question": q, "answer": "gold", "culture_type": "Literacy", "associated_culture": "arab"}) + "\n"
        for q in questions
    ))  # fmt: skip
    snippets = tmp_path / "snippets.jsonl"
    rows = [
        {"question_id": f"arab-{q:04d}", "engine": "e", "language": language, "rank": rank, "url": "u",
         "snippet": f"s{q}{rank}{language}"}
        for q in (1, 2) for rank in (1, 2, 3) for language in ("ar", "en")
    ]  # fmt: skip
    snippets.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({
        "base": "quickstart", "train": False, "output_dir": str(tmp_path / "out"),
        "responses": {"search": {"path": str(snippets), "best_of": 2}},
        "evaluate": [{"task": "care_eval", "data": str(data), "judge": "files"}],
    }))  # fmt: skip
    assert cli.main(["study", str(path)]) == 75
    requests = tmp_path / "out" / "requests" / "search_care_eval.jsonl"
    assert f"{requests} -> {requests.with_suffix('').with_suffix('.answers.jsonl')}" in capsys.readouterr().err
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    prompts = [line["body"]["messages"][0]["content"] for line in lines]
    assert len(prompts) == 4  # two ranks of two questions, in the questions' language
    assert all("s11ar" in p or "s12ar" in p or "s21ar" in p or "s22ar" in p for p in prompts)
    ratings = {"s11ar": 3, "s12ar": 8, "s21ar": 5, "s22ar": 2}
    answers = [
        {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": {"choices": [{"message": {"content":
            f"Rating: [[{next(r for s, r in ratings.items() if s in prompt)}]]"}}]}}}
        for line, prompt in zip(lines, prompts)
    ]  # fmt: skip
    requests.with_name("search_care_eval.answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    assert cli.main(["study", str(path)]) == 0
    assert "| search | - | 6.500 [" in capsys.readouterr().out  # the best of each: 8 and 5


def test_the_best_of_a_question_is_kept(tmp_path):
    lines = [
        {"id": "a", "rating": 3},
        {"id": "a", "rating": None},
        {"id": "a", "rating": 5},
        {"id": "b", "rating": None},
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keep_best(tmp_path / "rated.jsonl", tmp_path / "best.jsonl")
    assert [json.loads(line)["rating"] for line in (tmp_path / "best.jsonl").read_text().splitlines()] == [5, None]


@pytest.mark.slow
def test_a_study_survives_a_kill_and_draws_its_curves(tmp_path):
    """Two tiny runs: the study is killed in the first and started again; finished runs are kept."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({
        "base": ["quickstart", "data.max_steps=6", "checkpoint.every=1", "data.max_length=128", "batch.row_length=128",
                 "trackers=[]"],
        "grid": {"data.fraction": [0.25, 1.0]}, "x": "data.fraction", "output_dir": str(tmp_path / "out"),
    }))  # fmt: skip
    words = [sys.executable, "-m", "care_jax", "study", str(path)]
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    first = tmp_path / "out" / "runs" / "base_fraction=0.25_seed=0" / "metrics.jsonl"
    end = time.monotonic() + 300
    while not (first.exists() and first.read_text().count('"loss"') >= 2):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert "fraction=0.25" in done.stdout
    assert (tmp_path / "out" / "curves_preference_accuracy.png").is_file()
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment())
    assert "2 of 2 runs are finished and kept" in again.stderr
    assert again.stdout == done.stdout
