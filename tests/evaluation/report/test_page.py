"""The page to browse, which shows texts as text."""

import json
import os
import re
import shutil
import subprocess

import pytest

from care_jax.evaluation.report import page, records
from tests.evaluation.report.rated import SYSTEMS


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
