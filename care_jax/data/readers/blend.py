"""BLEnD's annotation files (Myung et al. 2024): one parser for the reader `blend` and the task `blend_sa`.

Files: github.com/nlee0212/BLEnD, data/annotations/{Country}_data.json, an object of id -> entry; or the hub's rows with
an ID.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from care_jax.data.cultures import culture_id
from care_jax.data.questions import Question, Response, assistant_turn, user_turn
from care_jax.data.readers.rated import Groups, Known
from care_jax.data.rows import fields
from care_jax.data.rows.fields import BadField
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.row import Row, describe, shorten
from care_jax.data.rows.table import Table
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject

BLEND = {
    "id": ("ID",),
    "question": ("question",),
    "translated": ("en_question",),
    "answers": ("annotations", "aggregated_answers"),
    "idks": ("idks",),
    "country": ("country",),
}
_KEYS = {key for keys in BLEND.values() for key in keys}
FILES = r"_data(?![a-zA-Z0-9])[^/]*\.json$"  # files of questions and prompts are in the same folder


class Language(NamedTuple):
    """The language of a country's questions: its BCP 47 code and its English name."""

    code: str
    name: str


_ENGLISH, _KOREAN, _SPANISH = Language("en", "English"), Language("ko", "Korean"), Language("es", "Spanish")
_LANGUAGES = {
    "uk": _ENGLISH, "us": _ENGLISH, "south_korea": _KOREAN, "north_korea": _KOREAN, "spain": _SPANISH,
    "mexico": _SPANISH, "algeria": Language("ar", "Arabic"), "china": Language("zh", "Chinese"),
    "indonesia": Language("id", "Indonesian"), "iran": Language("fa", "Persian"), "assam": Language("as", "Assamese"),
    "greece": Language("el", "Greek"), "ethiopia": Language("am", "Amharic"),
    "northern_nigeria": Language("ha", "Hausa"), "azerbaijan": Language("az", "Azerbaijani"),
    "west_java": Language("su", "Sundanese"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Votes:
    """An answer of the annotators: its wordings in the local language and in English, and how many people gave it."""

    local: tuple[str, ...]
    english: tuple[str, ...]
    count: float


def country_of_file(file: str | pathlib.PurePath) -> str:
    """Returns the country in the name of a file: 'US' for US_data.json and US_data_v1.json."""
    return re.split(r"_data(?![a-zA-Z0-9])", pathlib.PurePath(file).name)[0].split(".")[0]


def country_language(country: str) -> Language | None:
    """Returns the language of a country's questions, or None if BLEnD does not have the country."""
    return _LANGUAGES.get(country.casefold().replace(" ", "_"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One question of a file of annotations. place: its row and id. values: its fields, named as in `BLEND`."""

    place: str
    id: str
    values: JsonObject
    votes: tuple[Votes, ...]


def open_annotations(path: str) -> Iterator[Entry]:
    """Yields the entries of a file of annotations; raises `UserError` for an entry that is not as in BLEnD's files."""
    for row, values in Table(_entries(open_rows(path)), fields.FieldFinder.make(BLEND, None)):
        place = f"{row.place} ({values['id']})" if "id" in values else row.place
        missing = [name for name in ("id", "question", "idks", "answers") if name not in values]
        if missing:
            keys = ", ".join(map(str, row.value or ()))
            raise UserError(f"{place}: no `{' or '.join(BLEND[missing[0]])}`; its keys are {keys}")
        try:
            yield Entry(place, str(values["id"]), values, tuple(parse_votes(values["answers"])))
        except BadField as bad:
            mistake = f"expected a list of answers, en_answers, count, found {bad.value}"
            raise UserError(f"{place}, {bad.field}: {mistake}") from None


def _entries(rows: Iterable[Row]) -> Iterator[Row]:
    """Yields a row per entry. Entries of a file of id -> entry get their id as `ID`; other rows are entries already."""
    number = 0
    for row in rows:
        if not row.value or _KEYS & set(row.value) or not any(isinstance(v, Mapping) for v in row.value.values()):
            yield dataclasses.replace(row, number=number)
            number += 1
            continue
        for index, (identity, entry) in enumerate(row.value.items()):
            value = {"ID": identity, **entry} if isinstance(entry, Mapping) else entry
            yield Row.make(row.file, index, number, None, value)
            number += 1


def parse_votes(answers: object) -> list[Votes]:
    """Returns the annotators' answers, the most frequent first; raises `BadField` for an answer without a count."""
    if answers is not None and not isinstance(answers, list | tuple):
        raise BadField("empty_response", "annotations", describe(answers))
    votes = []
    for answer in answers or ():
        if not isinstance(answer, Mapping):
            raise BadField("empty_response", "annotations", describe(answer))
        count = fields.rating(answer.get("count"), "annotations")
        votes.append(Votes(_wordings(answer.get("answers")), _wordings(answer.get("en_answers")), count))
    # BLEnD's scorer takes the count of the first entry as the highest; its files are sorted already.
    return sorted(votes, key=lambda vote: -vote.count)


def _wordings(value: object) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list | tuple) else ()


def exclusion(idks: object) -> str | None:
    """Returns why BLEnD's authors exclude a question, else None.

    unanswerable: no-answer and not-applicable together at least 3. unknown: idk at least 5.
    """
    counts = idks if isinstance(idks, Mapping) else {}
    no_answer, not_applicable, unknown = (
        counts[name] if isinstance(counts.get(name), int | float) else 0
        for name in ("no-answer", "not-applicable", "idk")
    )
    if no_answer + not_applicable >= 3:
        return "unanswerable"
    return "unknown" if unknown >= 5 else None


def read_blend(table: Table, known: Known) -> list[Question]:
    """Reads a question per entry; the most frequent answer of the country is its only response, not rated.

    Drops as `unanswerable` what BLEnD's authors exclude, and as `empty_response` a question without an answer.
    """
    groups = Groups(table.report)

    def add(row: Row, values: JsonObject) -> None:
        fields.need(values, "question", "answers")
        question = fields.text(values["question"], "question", "empty_question")
        idks = values.get("idks")
        if exclusion(idks):
            raise BadField("unanswerable", "idks", shorten(idks))
        votes = parse_votes(values["answers"])
        if not votes or not all(vote.local for vote in votes):
            raise BadField("empty_response", "annotations", describe(values["answers"]))
        # The first wording of each answer; of equally frequent answers the first by text.
        answers = ((-vote.count, fields.text(vote.local[0], "annotations", "empty_response")) for vote in votes)
        _, answer = min(answers)
        country = fields.optional_text(values.get("country"), "country") or country_of_file(row.file)
        language = country_language(country)
        about = {
            "culture": culture_id(country),
            "language": language and language.code,
            "reference": answer,
            "translated": fields.optional_text(values.get("translated"), "translated"),
        }
        response = Response(assistant_turn(answer), None, "reference", row.number, "answer")
        groups.add(row, user_turn(question), response, about)

    dataclasses.replace(table, rows=_entries(table.rows)).for_each(add)
    return groups.questions()
