"""A page to read questions, answers and judgements side by side: one file, no network, no build."""

import json
from collections.abc import Sequence
from typing import Any

from care_jax.evaluation.report.records import Record


def page(records: Sequence[Record], systems: Sequence[str]) -> str:
    """The HTML. Texts stand in it as JSON and are shown as text, never as markup; each finds its own direction."""
    items: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        one = items.setdefault(
            (record.task, record.item),
            {
                "task": record.task, "culture": record.culture, "category": record.category,
                "question": record.question, "reference": record.reference, "answers": {},
            },
        )  # fmt: skip
        one["reference"] = one["reference"] or record.reference
        one["answers"].setdefault(record.system, []).append(
            {
                "response": record.response, "rating": record.value, "judgement": record.judgement,
                "judge": record.judge, "language": record.language,
            }
        )  # fmt: skip
    data = json.dumps({"systems": list(systems), "items": list(items.values())}, ensure_ascii=False)
    # '<' could end the script element or open a comment in it; in JSON it may be written as an escape.
    return _PAGE.replace("/*DATA*/", data.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Answers</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { margin: 0; font: 15px/1.55 system-ui, "Noto Sans", "Noto Sans Arabic", "Noto Sans CJK JP", sans-serif; }
header { position: sticky; top: 0; background: Canvas; border-bottom: 1px solid var(--line); padding: .6rem 1rem;
  display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; z-index: 1; }
header input[type=search] { flex: 1 1 12rem; }
header fieldset { border: 0; margin: 0; padding: 0; display: flex; gap: .7rem; flex-wrap: wrap; }
main { padding: 0 1rem 3rem; }
article { border-bottom: 1px solid var(--line); padding: 1rem 0; }
.about { font-size: .8rem; opacity: .7; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; text-align: start; unicode-bidi: plaintext; }
.question { font-size: 1.15rem; font-weight: 600; margin: .2rem 0; }
.reference { border-inline-start: 3px solid var(--line); padding-inline-start: .6rem; margin: .4rem 0 .8rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .8rem; }
.answer { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; }
.answer h3 { margin: 0 0 .4rem; font-size: .85rem; display: flex; justify-content: space-between; gap: 1rem; }
.rating { font-variant-numeric: tabular-nums; padding: 0 .5rem; border-radius: 4px; background: var(--soft); }
.failed { outline: 1px dashed; }
details { margin-top: .5rem; font-size: .85rem; }
nav { display: flex; gap: .6rem; align-items: center; padding: 1rem 0; }
</style>
</head>
<body>
<header>
  <input type="search" id="search" placeholder="Search questions and answers" aria-label="Search">
  <select id="task" aria-label="Task"></select>
  <select id="culture" aria-label="Culture"></select>
  <select id="category" aria-label="Category"></select>
  <select id="order" aria-label="Order">
    <option value="file">in file order</option><option value="low">lowest ratings first</option>
    <option value="apart">furthest apart first</option>
  </select>
  <fieldset id="systems" aria-label="Systems"></fieldset>
  <span id="count" role="status"></span>
</header>
<main id="list"></main>
<script type="application/json" id="data">/*DATA*/</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const one = document.createElement(tag);
  if (name) one.className = name;
  if (text !== undefined) one.textContent = text;
  return one;
};
const text = (name, value) => {
  const one = make("div", "text " + name, value);
  one.dir = "auto";
  return one;
};
const choices = (id, key, all) => {
  const values = [...new Set(data.items.map((item) => item[key]))].sort();
  at(id).append(new Option(all, ""), ...values.map((value) => new Option(value, value)));
  at(id).hidden = values.length < 2;
};
choices("task", "task", "all tasks");
choices("culture", "culture", "all cultures");
choices("category", "category", "all categories");
for (const system of data.systems) {
  const label = make("label"), box = make("input");
  box.type = "checkbox"; box.checked = true; box.value = system;
  label.append(box, " " + system);
  at("systems").append(label);
}
const PAGE = 50;
let first = 0;
const mean = (answers) => {
  const rated = answers.map((one) => one.rating).filter((one) => one !== null);
  return rated.length ? rated.reduce((a, b) => a + b, 0) / rated.length : null;
};
const shown = () => [...at("systems").querySelectorAll("input:checked")].map((box) => box.value);
const found = () => {
  const words = at("search").value.toLowerCase().split(/\\s+/).filter(Boolean);
  const systems = shown();
  const kept = data.items.filter((item) => {
    if (["task", "culture", "category"].some((key) => at(key).value && item[key] !== at(key).value)) return false;
    if (!words.length) return true;
    const answers = systems.flatMap((one) => (item.answers[one] || []).map((a) => a.response));
    const all = [item.question, item.reference, ...answers].join("\\n").toLowerCase();
    return words.every((word) => all.includes(word));
  });
  const ratings = (item) => systems.map((one) => mean(item.answers[one] || [])).filter((one) => one !== null);
  const keys = {
    low: (item) => Math.min(Infinity, ...ratings(item)),
    apart: (item) => { const r = ratings(item); return r.length ? Math.min(...r) - Math.max(...r) : 0; },
  };
  const key = keys[at("order").value];
  return key ? kept.map((item) => [key(item), item]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]) : kept;
};
const card = (item) => {
  const one = make("article");
  one.append(make("div", "about", [item.task, item.culture, item.category].join(" · ")));
  one.append(text("question", item.question));
  if (item.reference) one.append(text("reference", item.reference));
  const answers = make("div", "answers");
  for (const system of shown()) {
    for (const answer of item.answers[system] || []) {
      const box = make("section", "answer"), head = make("h3");
      const rating = make("span", "rating" + (answer.rating === null ? " failed" : ""),
        answer.rating === null ? "no rating" : String(Math.round(answer.rating * 1000) / 1000));
      head.append(make("span", "", system), rating);
      box.append(head, text("response", answer.response));
      if (answer.judgement) {
        const more = make("details");
        more.append(make("summary", "", "judgement" + (answer.judge ? " of " + answer.judge : "")));
        more.append(text("judgement", answer.judgement));
        box.append(more);
      }
      box.append(make("div", "about", "answer in: " + answer.language));
      answers.append(box);
    }
  }
  one.append(answers);
  return one;
};
const show = () => {
  const items = found();
  if (first >= items.length) first = 0;
  at("count").textContent = items.length + " of " + data.items.length + " questions";
  const nav = make("nav");
  const step = (label, by, possible) => {
    const button = make("button", "", label);
    button.disabled = !possible;
    button.onclick = () => { first += by; show(); scrollTo(0, 0); };
    return button;
  };
  nav.append(step("previous", -PAGE, first > 0), step("next", PAGE, first + PAGE < items.length));
  nav.append(make("span", "about", items.length ? (first + 1) + "–" + Math.min(first + PAGE, items.length) : "none"));
  at("list").replaceChildren(...items.slice(first, first + PAGE).map(card), nav);
};
for (const id of ["search", "task", "culture", "category", "order", "systems"])
  at(id).addEventListener("input", () => { first = 0; show(); });
show();
</script>
</body>
</html>
"""
