"""Reports: cells computed by hand, the files, and a page that shows texts as text."""

import csv
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from care_jax import cli
from care_jax.evaluation.report import files, page, records, tables

SYSTEMS = {"base": 0.0, "tuned": 1.0}
CELLS = {("arab", "norms"): 4.0, ("arab", "literacy"): 2.0, ("chinese", "norms"): 6.0}
TEXTS = {
    "arab": ("ما هي آداب <الضيافة>؟", "القهوة & التمر </script><b>"),
    "chinese": ("为什么不喜欢数字四？", "因为谐音"),
}


def rated(folder, system, shift, lacking=()):
    rng = np.random.default_rng(0)
    lines = []
    for (culture, category), mean in CELLS.items():
        for number in range(6):
            question, response = TEXTS[culture]
            rating = float(np.clip(np.round(mean + rng.normal()), 1, 9)) + shift
            lines.append(
                {
                    "question": f"{question} {category} {number}", "response": response, "reference": "gold",
                    "system": system, "culture": culture, "category": category,
                    "rating": None if number in lacking else rating,
                    "judgement": "fine <i>", "judge": "j",
                }
            )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "rated.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (folder / "responses.jsonl").write_text(
        json.dumps({"question": "q", "response": "r"}) + "\n"
    )  # not judged: no part
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    return [rated(tmp_path / name, name, shift, (5,) if shift else ()) for name, shift in SYSTEMS.items()]


def test_cells_averages_and_differences_computed_by_hand(folders):
    report = tables.make_report(records.load_records(folders), "base")
    base = {place: [] for place in CELLS}
    for record in records.load_records(folders[:1]):
        base[record.culture, record.category].append(record.value)
    for place, values in base.items():
        cell = report.cell("care_eval", "cell", "base", *place)
        assert (cell.value, cell.n, cell.failed) == (pytest.approx(np.mean(values)), 6, 0)
        assert cell.low < cell.value < cell.high
    means = [np.mean(values) for values in base.values()]
    assert report.cell("care_eval", "macro", "base", "all", "all").value == pytest.approx(np.mean(means))
    arab = [np.mean(base["arab", name]) for name in ("norms", "literacy")]
    assert report.cell("care_eval", "macro", "base", "arab", "all").value == pytest.approx(np.mean(arab))
    tuned = report.cell("care_eval", "macro", "tuned", "all", "all")
    assert (tuned.n, tuned.failed) == (15, 3)
    difference = report.cell("care_eval", "difference", "tuned", "all", "all")
    assert (difference.value, difference.low, difference.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert (difference.wins, difference.ties, difference.losses, difference.n) == (15, 0, 0, 15)


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


def test_two_folders_of_one_system_are_named_by_the_folders(tmp_path):
    folders = [rated(tmp_path / name, "same", 0.0) for name in ("first", "second")]
    assert {record.system for record in records.load_records(folders)} == {"first", "second"}


def test_mistakes(folders, tmp_path, capsys):
    assert cli.main(["report", *folders, "--base", "tunde"]) == 2
    assert "found 'tunde' (did you mean 'tuned'?)" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert "holds no judged or scored answers" in capsys.readouterr().err


def test_the_page_holds_texts_only_as_data(folders):
    html = page.page(records.load_records(folders), list(SYSTEMS))
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert "</script><b>" not in html
    assert "http://" not in html
    assert "https://" not in html
    items = json.loads(data)["items"]
    assert items[0]["question"].startswith("ما هي آداب <الضيافة>؟")
    assert len(items) == 18
    assert set(items[0]["answers"]) == {"base", "tuned"}


LOOK = """
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";
const [page_, picture] = process.argv.slice(2);
const browser = await puppeteer.launch({
  args: [...chromium.args, "--no-sandbox"], executablePath: await chromium.executablePath(), headless: "shell"});
const page = await browser.newPage();
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));
await page.setViewport({width: 1100, height: 900});
await page.goto("file://" + page_);
const look = () => page.evaluate(() => ({
  count: document.getElementById("count").textContent,
  cards: document.querySelectorAll("article").length,
  bold: document.querySelectorAll("article b, article i").length,
  questions: [...document.querySelectorAll(".question")].map((box) => ({
    text: box.textContent, direction: getComputedStyle(box).direction, align: getComputedStyle(box).textAlign,
    right: (() => { const r = document.createRange(); r.selectNodeContents(box);
      const t = r.getBoundingClientRect(), b = box.getBoundingClientRect();
      return Math.abs(b.right - t.right) < 3 && t.left - b.left > 50; })() })),
  answers: document.querySelectorAll(".answer").length,
  ratings: [...document.querySelectorAll(".rating")].map((box) => box.textContent),
}));
const first = await look();
if (picture) await page.screenshot({path: picture});
await page.type("#search", "数字四");
const searched = await look();
await page.evaluate(() => { document.getElementById("search").value = ""; });
await page.select("#culture", "arab");
await page.click("#systems input[value=tuned]");
const chosen = await look();
console.log(JSON.stringify({first, searched, chosen, errors}));
await browser.close();
"""


@pytest.mark.slow
def test_the_page_in_a_headless_browser(folders, tmp_path):
    """Needs node; CARE_JAX_BROWSER names a folder with puppeteer-core and @sparticuz/chromium."""
    home = os.environ.get("CARE_JAX_BROWSER")
    if home is None or shutil.which("node") is None:
        pytest.skip("CARE_JAX_BROWSER names no folder with puppeteer-core and @sparticuz/chromium")
    (tmp_path / "index.html").write_text(page.page(records.load_records(folders), list(SYSTEMS)), encoding="utf-8")
    script = tmp_path / "look.mjs"
    script.write_text(LOOK)
    (tmp_path / "node_modules").symlink_to(os.path.join(home, "node_modules"))
    words = ["node", str(script), str(tmp_path / "index.html")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    states = json.loads(done.stdout)
    assert states["errors"] == []
    first = states["first"]
    assert (first["cards"], first["answers"], first["bold"]) == (18, 36, 0)
    assert first["count"] == "18 of 18 questions"
    for question in first["questions"]:
        arabic = "الضيافة" in question["text"]
        assert question["direction"] == ("rtl" if arabic else "ltr")
        assert question["right"] is arabic
    assert first["ratings"].count("no rating") == 3
    assert states["searched"]["cards"] == 6
    assert (states["chosen"]["cards"], states["chosen"]["answers"]) == (12, 12)
