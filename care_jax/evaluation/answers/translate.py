"""`care-jax generate --task translate`: translates questions into English, for `translations:`. Imports no jax."""

import pathlib
from collections import Counter

from care_jax.data.cultures import culture_id, parse_culture
from care_jax.data.questions import question_key, user_turn
from care_jax.data.rows import fields as f
from care_jax.data.rows.report import Report
from care_jax.data.rows.row import Row
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.evaluation.answers.prompts import PromptRow
from care_jax.textfiles import JsonObject, read_lines, write_lines, writing

_FIELDS = {name: f.RATED[name] for name in ("question", "culture", "translated")}
_PROMPT = (
    "Here is a question that was asked in another language. Say it in English: keep its meaning and its names, do not"
    " answer it, and write nothing but the English question.\n\n"
)


def read_untranslated(path: str, limit: int | None = None) -> tuple[list[PromptRow], Counter[str]]:
    """Returns the first `limit` distinct questions without an English translation, and the dropped rows by reason.

    The fields of a prompt are `question` and, if the row has it, `culture`. Raises UserError if nothing is left.
    """
    report = Report()
    prompts: list[PromptRow] = []
    seen: set[str] = set()
    for number, question, culture, translated in open_table(path, _FIELDS, report=report).parse(_parse):
        key = question_key(question, (parse_culture(culture)[1] or culture_id(culture)) if culture else None)
        if translated is None and key not in seen:
            fields = {"question": question} | ({} if culture is None else {"culture": culture})
            prompts.append(PromptRow(number, fields, user_turn(_PROMPT + question)))
            if len(prompts) == limit:
                break
        seen.add(key)
    if not prompts:
        raise UserError(f"{path}: all {len(seen)} questions have an English translation: nothing to translate")
    return prompts, report.dropped


def _parse(row: Row, values: JsonObject) -> tuple[int, str, str | None, str | None]:
    """Returns the row's number, question, culture and translated question."""
    f.need(values, "question")
    question = f.text(values["question"], "question", "empty_question")
    culture, translated = (f.optional_text(values.get(name), name) for name in ("culture", "translated"))
    return row.number, question, culture, translated


def write_translations(answers: str, out: str) -> tuple[int, int]:
    """Writes `question`, `culture`, `translated_question`, `system` of every answer; returns (written, left out).

    An answer is left out if it failed, is blank, or was cut off at the maximum of tokens.
    """
    lines = read_lines(pathlib.Path(answers))
    translations: list[JsonObject] = []
    for line in lines:
        english = (line["response"] or "").strip()
        if english and line["finish_reason"] != "length":
            fields: JsonObject = {name: line[name] for name in ("question", "culture") if name in line}
            translations.append(fields | {"translated_question": english, "system": line["system"]})
    with writing("--out", out):
        write_lines(pathlib.Path(out), translations)
    return len(translations), len(lines) - len(translations)
