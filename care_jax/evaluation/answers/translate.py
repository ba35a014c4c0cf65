"""`care-jax generate --task translate`: questions into English, a file for `translations:`. Needs no jax."""

import json
import os
import pathlib
from collections import Counter
from typing import Any

from care_jax.data.questions import culture_id, parse_culture, question_key
from care_jax.data.readers.rated import user_turn
from care_jax.data.rows import fields as f
from care_jax.data.rows.report import Report
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.evaluation.answers.prompts import Asked
from care_jax.textfiles import write_whole

_FIELDS = {name: f.RATED[name] for name in ("question", "culture", "translated")}
_PROMPT = (
    "Here is a question that was asked in another language. Say it in English: keep its meaning and its names, do not"
    " answer it, and write nothing but the English question.\n\n"
)


def read_questions(path: str, limit: int | None = None) -> tuple[list[Asked], Counter[str]]:
    """The first `limit` questions that have no English wording, each once, and how many rows were dropped and why.

    fields: `question` and, where the row has one, `culture`, as they stand there. Raises UserError where none is left.
    """
    report = Report()
    table = open_table(path, _FIELDS, report=report)
    asked: list[Asked] = []
    seen: set[str] = set()
    for row, found in table:
        if limit is not None and len(asked) == limit:
            break
        try:
            f.need(found, "question")
            question = f.text(found["question"], "question", "empty_question")
            culture = f.optional_text(found.get("culture"), "culture")
            translated = f.optional_text(found.get("translated"), "translated")
        except f.BadField as bad:
            table.drop(row, bad)
            continue
        key = question_key(question, (parse_culture(culture)[1] or culture_id(culture)) if culture else None)
        if translated is None and key not in seen:
            about = {"question": question} | ({} if culture is None else {"culture": culture})
            asked.append(Asked(row.number, about, user_turn(_PROMPT + question)))
        seen.add(key)
    if not asked:
        raise UserError(f"{path}: of {len(seen)} questions none lacks an English wording: nothing to translate")
    return asked, report.dropped


def write_translations(answers: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[int, int]:
    """Writes `question`, `culture`, `translated_question`, `system` of every answer; (how many, how many left out).

    Left out is what failed, is blank, or was cut off at the maximum of tokens: such a question counts as missing.
    """
    made: list[dict[str, Any]] = []
    lost = 0
    for line in pathlib.Path(answers).read_bytes().splitlines():  # of text, U+2028 would end a line too
        answer = json.loads(line)
        english = (answer.pop("response") or "").strip()
        if not english or answer.pop("finish_reason") == "length":
            lost += 1
            continue
        about = {name: answer[name] for name in ("question", "culture") if name in answer}
        made.append({**about, "translated_question": english, "system": answer["system"]})
    try:
        write_whole(pathlib.Path(out), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in made))
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {error.strerror}") from None
    return len(made), lost
