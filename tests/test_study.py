"""Studies: what runs they plan, what they keep, the tables by hand, and judging by files that pauses."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from care_jax import cli
from care_jax import config as configs
from care_jax.errors import UserError
from care_jax.evaluation.answers.snippets import keep_best
from care_jax.study import jobs, pictures, results, spec, stages, tables

STUDY = {
    "base": "quickstart",
    "arms": {"dpo": {}, "simpo": {"loss": {"name": "simpo", "beta": 2.0}, "optimizer.learning_rate": 2e-3}},
    "grid": {"data.fraction": [0.5, 1.0]},
    "seeds": [0, 1],
    "x": "data.fraction",
    "baseline": "dpo",
}


def study_of(tmp_path, **more):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "output_dir": str(tmp_path / "out"), **more}))
    return spec.load_study(path)


def test_every_arm_point_and_seed_is_a_run(tmp_path):
    study = study_of(tmp_path)
    planned = spec.runs(study)
    assert len(planned) == 8
    last = planned[-1]
    assert last.name == "simpo_fraction=1.0_seed=1"
    assert (last.config.loss.name, last.config.loss.hyperparameters["beta"]) == ("simpo", 2.0)
    assert (last.config.data.fraction, last.config.seed) == (1.0, 1)
    assert last.config.optimizer.learning_rate == 2e-3
    assert planned[0].config.optimizer.learning_rate == 1e-3
    assert len({one.config.output_dir for one in planned}) == 8


@pytest.mark.parametrize("name", spec.shipped())
def test_the_shipped_studies_are_whole(name):
    study = spec.load_study(name)
    planned = spec.runs(study)
    stages.check_tasks(study)
    assert planned
    assert spec.systems(study, planned)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arms": {"dpo": {"optimizer.learning_rat": 1}}}, r"arm dpo.*optimizer.learning_rat: unknown key"),
        ({"grid": {"data.fraction": []}}, r"grid.data.fraction: found an empty list"),
        ({"x": "seed"}, r"x: found 'seed'.*expected a key of the grid"),
        ({"baseline": "dpi"}, r"baseline: found 'dpi' \(did you mean 'dpo'\?\)"),
        ({"seed": [1]}, r"seed: unknown key \(did you mean 'seeds'\?\)"),
        ({"evaluate": [{"task": "care_eval"}]}, r"care_eval is rated by a judge"),
        ({"evaluate": [{"task": "inclde"}]}, r"found 'inclde' \(did you mean 'include'\?\)"),
        ({"train": False}, r"evaluate: found nothing, but train is false"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        stages.run(study_of(tmp_path, **given))
    assert not (tmp_path / "out" / "runs").exists()


def test_a_name_that_is_none():
    with pytest.raises(UserError, match=r"no study of that name \(did you mean 'mixing'\?\)"):
        spec.load_study("mixin")


# --- tables ----------------------------------------------------------------------------------------------------------

GAIN = {("dpo", 0.5): 0.1, ("dpo", 1.0): 0.2, ("simpo", 0.5): 0.15, ("simpo", 1.0): 0.3}


def finish(one, rng):
    """A finished run as the trainer leaves it: 12 held-out questions, the same for all."""
    (one.folder / "export").mkdir(parents=True)
    (one.folder / "export" / "config.json").write_text("{}")
    (one.folder / "config.yaml").write_text(configs.dump(one.config))
    with open(one.folder / "held_out.jsonl", "w") as file:
        for number in range(12):
            for step in (0, 9):
                start = 0.4 + 0.01 * number
                gain = GAIN[one.arm, one.point["data.fraction"]] * (0.8 + 0.4 * (number % 2)) + 0.02 * one.seed
                value = start if step == 0 else start + gain
                line = {
                    "step": step, "question": f"q{number}", "culture": ("arab", "chinese")[number % 2],
                    "category": ("norms", "literacy", "opinion")[number % 3], "pairs": 4,
                    "rewards/accuracies": None if step == 0 else value, "logps/accuracies": value,
                }  # fmt: skip
                file.write(json.dumps(line) + "\n")


@pytest.fixture
def finished(tmp_path):
    study = study_of(tmp_path)
    for one in spec.runs(study):
        finish(one, np.random.default_rng(one.seed))
    return study


def test_tables_by_hand(finished):
    folder = stages.run(finished)  # every run is finished: nothing is trained
    rows = json.loads((folder / "report.json").read_text())

    def row(kind, arm, fraction, culture="all", measure=results.LOGPS):
        return next(
            r for r in rows
            if (r["measure"], r["kind"], r["arm"], r["culture"]) == (measure, kind, arm, culture)
            and r["point"] == {"data.fraction": str(fraction)}
        )  # fmt: skip

    for (arm, fraction), gain in GAIN.items():
        found = row("mean", arm, fraction)
        assert found["value"] == pytest.approx(0.455 + gain + 0.01)  # seeds 0 and 1: 0.02 on one of two
        assert (found["seeds"], found["questions"]) == (2, 12)
        assert found["low"] < found["value"] < found["high"]
        assert row("gain", arm, fraction)["value"] == pytest.approx(gain + 0.01)
        share = row("share of the full gain", arm, fraction)
        full = GAIN[arm, 1.0]
        assert share["value"] == pytest.approx((gain + 0.01) / (full + 0.01))
        assert share["relative"] == pytest.approx((gain + 0.01) / 0.455)
    assert row("share of the full gain", "dpo", 1.0)["low"] == pytest.approx(1.0)
    assert row("from dpo", "simpo", 1.0)["value"] == pytest.approx(0.1)
    arab = row("mean", "dpo", 1.0, "arab", results.REWARDS)
    assert arab["value"] == pytest.approx(np.mean([0.4 + 0.01 * n for n in range(0, 12, 2)]) + 0.2 * 0.8 + 0.01)
    names = {path.name for path in folder.glob("*.png")}
    assert {"curves_preference_accuracy.png", "scatter_preference_accuracy_by_logps.png"} <= names
    assert "| dpo | fraction=0.5 |" in (folder / "report.md").read_text()


def test_results_are_a_parquet_of_observations(finished):
    from pyarrow import parquet

    folder = stages.run(finished)
    table = parquet.read_table(folder / "results.parquet")
    assert table.num_rows == 8 * 12 * (2 + 1)
    assert {"arm", "seed", "when", "measure", "question", "value", "data.fraction"} <= set(table.column_names)
    assert set(table.column("data.fraction").to_pylist()) == {0.5, 1.0}


def test_seeds_that_held_out_other_questions_are_still_averaged():
    found = [
        results.Observation("r", "a", {}, seed, "end", "m", "all", "all", question, value)
        for seed, question, value in [(0, "x", 1.0), (0, "y", 0.0), (1, "x", 0.0), (1, "z", 1.0)]
    ]
    table = results.table(found)
    assert table.questions == ("x", "y", "z")
    assert table.values.tolist() == [[0.5, 0.0, 1.0]]
    assert table.seeds == 2


def test_an_arm_has_its_colour_in_every_panel_and_all_are_named(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure) or path)
    rows = [
        {"kind": "mean", "arm": arm, "point": {"data.fraction": x}, "culture": culture, "value": x, "low": 0, "high": 1}
        for arm, cultures in (("one", ["chinese", "all"]), ("both", ["chinese", "all", "arab"]))
        for culture in cultures
        for x in (0.5, 1.0)
    ]
    pictures.curves(study_of(tmp_path), "accuracy", rows, tmp_path)
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["chinese", "arab", "all"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"one", "both"}
    shown = [{one.get_label(): one.lines[0].get_color() for one in axes.containers} for axes in figure.axes]
    assert [set(one) for one in shown] == [{"one", "both"}, {"both"}, {"one", "both"}]
    assert len(set(shown[0].values())) == 2
    assert shown[2] == shown[0]
    assert shown[1]["both"] == shown[0]["both"]


def test_what_a_killed_study_left_running_is_waited_for(tmp_path, capsys):
    log, mark = tmp_path / "one.log", tmp_path / "ended"
    script = f"import pathlib, time; time.sleep(2); pathlib.Path({str(mark)!r}).touch()"
    with log.open("ab") as file:
        assert jobs._is_free(file)
        left = subprocess.Popen([sys.executable, "-c", script], stdout=file)
    try:
        seen = jobs.Command("one", ("losses", "--help"), log)
        assert jobs.run_all([seen], 1, tmp_path / "compiled") == {"one": 0}
    finally:
        left.wait()
    assert mark.exists()
    out = capsys.readouterr().err
    assert out.index("one: a stopped study's process still saves; waiting") < out.index("[1/1] one")
    assert "usage" in log.read_text()


def test_a_finished_run_with_other_settings_is_refused(finished, tmp_path):
    other = study_of(tmp_path, arms={"dpo": {"loss.beta": 0.2}, "simpo": STUDY["arms"]["simpo"]})
    with pytest.raises(UserError, match=r"finished run with other settings: loss.beta: 0.1 there, 0.2 now"):
        stages.run(other)


def test_unfinished_runs_are_listed_for_launch_jobs(finished, capsys):
    one = spec.runs(finished)[3]
    shutil.rmtree(one.folder / "export")
    path = pathlib.Path(finished.output_dir) / "again.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "output_dir": finished.output_dir}))
    assert cli.main(["study", str(path), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in listed] == [one.name]
    assert listed[0].endswith(f"--run {one.name}")


def test_native_minus_english():
    def seen(measure, value, question):
        return results.Observation("m", "m", {}, None, "start", measure, "arab", "norms", question, value)

    found = [seen("care_eval", 5.0 + n, f"arab-{n}") for n in range(4)]
    found += [seen("care_eval (english)", 4.0 + n, f"arab-{n}") for n in range(4)]
    rows, text = tables._language_gaps(found)
    assert [(row["category"], row["value"]) for row in rows] == [("all", 1.0), ("norms", 1.0)]
    assert text[0] == "## Native minus English"


# --- answers of others, judged by files ------------------------------------------------------------------------------


def test_search_snippets_judged_by_files_pause_and_go_on(tmp_path, capsys):
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
    asked = [json.loads(line) for line in requests.read_text().splitlines()]
    prompts = [line["body"]["messages"][0]["content"] for line in asked]
    assert len(prompts) == 4  # two ranks of two questions, in the questions' language
    assert all("s11ar" in p or "s12ar" in p or "s21ar" in p or "s22ar" in p for p in prompts)
    ratings = {"s11ar": 3, "s12ar": 8, "s21ar": 5, "s22ar": 2}
    answers = [
        {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": {"choices": [{"message": {"content":
            f"Rating: [[{next(r for s, r in ratings.items() if s in prompt)}]]"}}]}}}
        for line, prompt in zip(asked, prompts)
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


# --- real runs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_survives_a_kill_and_draws_its_curves(tmp_path):
    """Two tiny runs of the quickstart's model; killed in the first, gone on with, its finished run kept."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({
        "base": ["quickstart", "data.max_steps=6", "checkpoint.every=1", "data.max_length=128", "batch.row_length=128",
                 "trackers=[]"],
        "grid": {"data.fraction": [0.25, 1.0]}, "x": "data.fraction", "output_dir": str(tmp_path / "out"),
    }))  # fmt: skip
    words = [sys.executable, "-m", "care_jax", "study", str(path)]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
    first = tmp_path / "out" / "runs" / "base_fraction=0.25_seed=0" / "metrics.jsonl"
    end = time.monotonic() + 300
    while not (first.exists() and first.read_text().count('"loss"') >= 2):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "fraction=0.25" in done.stdout
    assert (tmp_path / "out" / "curves_preference_accuracy.png").is_file()
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 of 2 runs are finished and kept" in again.stderr
    assert again.stdout == done.stdout
