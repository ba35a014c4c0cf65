"""The files that `care-jax report` writes.

Also tests `cli/report.py`, `evaluation/report/plots.py`.
"""

import csv
import json
import re

from care_jax import cli
from care_jax.evaluation.report import files, records, tables


def test_the_command_writes_all_files(folders, tmp_path, capsys):
    out = tmp_path / "report"
    assert cli.main(["report", *folders, "--base", "base", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "report.md").read_text()
    assert re.search(r"\| tuned \| all \| all \| \+1\.000 \[\+1\.000, \+1\.000\] \| 15 / 0 / 0 \| 15 \|", printed)
    with open(out / "report.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["kind"] for row in table} == {"cell", "macro", "micro", "difference"}
    assert json.loads((out / "report.json").read_text())["base"] == "base"
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == ["bars_care_eval.png"]  # two categories make no radar
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)


def test_three_categories_make_a_radar(tmp_path):
    lines = [
        {"question": f"{c}{n}", "response": "r", "culture": "arab", "category": c, "rating": n + 1, "system": "s"}
        for c in ("norms", "literacy", "opinion")
        for n in range(3)
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded = records.load_records([str(tmp_path / "rated.jsonl")])
    names = [path.name for path in files.write_report(tables.make_report(loaded), loaded, tmp_path / "out")]
    assert "radar_care_eval.png" in names


def test_a_mistake_is_one_message_and_status_2(folders, capsys):
    assert cli.main(["report", *folders, "--base", "tunde"]) == 2
    assert "found 'tunde' (did you mean 'tuned'?)" in capsys.readouterr().err
