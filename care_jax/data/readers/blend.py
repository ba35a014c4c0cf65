"""BLEnD's annotations as questions with a reference: for reading and leakage; `evaluate --task blend_sa` scores.

Myung et al. 2024; github nlee0212/BLEnD, data/annotations/{Country}_data.json, and the hub's rows with an ID.
"""

import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from care_jax.data.questions import Question, culture_id
from care_jax.data.readers.rated import Groups, Known, assistant_turn, good_rows, user_turn
from care_jax.data.rows import fields as f
from care_jax.data.rows.files import Row, describe, shorten
from care_jax.data.rows.report import Report

BLEND = {
    "question": ("question",),
    "translated": ("en_question",),
    "answers": ("annotations", "aggregated_answers"),
    "idks": ("idks",),
    "country": ("country",),
}
FILES = r"_data\b.*\.json$"  # of a folder: questions and prompts lie beside the annotations
_LANGUAGES = {
    "uk": "en", "us": "en", "south_korea": "ko", "north_korea": "ko", "algeria": "ar", "china": "zh",
    "indonesia": "id", "spain": "es", "mexico": "es", "iran": "fa", "assam": "as", "greece": "el", "ethiopia": "am",
    "northern_nigeria": "ha", "azerbaijan": "az", "west_java": "su",
}  # fmt: skip


def read_blend(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """One question an id; what most people of the country answered stands as the only, unrated response.

    Dropped as `unanswerable` is what the authors exclude: no-answer and not-applicable together at least 3, or idk at
    least 5; as `empty_response` what nobody answered.
    """
    groups = Groups(report)
    for row, found in good_rows(_entries(rows), fields, report):
        try:
            f.need(found, "question", "answers")
            question = f.text(found["question"], "question", "empty_question")
            _check_answerable(found.get("idks"))
            answer = _most_given(found["answers"])
            country = f.optional_text(found.get("country"), "country") or _country(row.file)
            groups.add(
                row,
                user_turn(question),
                assistant_turn(answer),
                None,
                "reference",
                name="answer",
                culture=culture_id(country),
                language=_LANGUAGES.get(country.lower().replace(" ", "_")),
                reference=answer,
                translated=f.optional_text(found.get("translated"), "translated"),
            )
        except f.Bad as bad:
            f.drop(report, row, bad)
    return groups.questions()


def _entries(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, those of a file that maps ids to entries one by one."""
    number = 0
    for row in rows:
        if not row.value or "question" in row.value or not all(isinstance(v, Mapping) for v in row.value.values()):
            yield Row(row.file, row.row, number, row.line, row.value, row.problem)
            number += 1
            continue
        for place, entry in enumerate(row.value.values()):
            yield Row(row.file, place, number, None, entry)
            number += 1


def _country(file: str) -> str:
    name = pathlib.PurePath(file).name
    return re.split(r"_data\b", name)[0].split(".")[0]


def _check_answerable(idks: Any) -> None:
    counts = idks if isinstance(idks, Mapping) else {}
    no, none, unknown = (
        value if isinstance(value := counts.get(name), int | float) else 0
        for name in ("no-answer", "not-applicable", "idk")
    )
    if no + none >= 3 or unknown >= 5:
        raise f.Bad("unanswerable", "idks", shorten(dict(counts)))


def _most_given(answers: Any) -> str:
    """The first wording of the answer that most people gave; of equal ones the first in the alphabet."""
    if not isinstance(answers, list) or not answers:
        raise f.Bad("empty_response", "annotations", describe(answers))
    given: list[tuple[float, str]] = []
    for one in answers:
        words = one.get("answers") if isinstance(one, Mapping) else None
        if not isinstance(words, list) or not words:
            raise f.Bad("empty_response", "annotations", describe(one))
        given.append((-f.rating(one.get("count"), "annotations"), f.text(words[0], "annotations", "empty_response")))
    return min(given)[1]
