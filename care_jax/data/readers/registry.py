"""From a dataset to questions with rated responses: the readers by name, and `read`, which runs one.

reading = read("care", "care.jsonl", cultures=["arab"])
reading.questions, reading.report.to_json()
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from care_jax.data.questions import (
    RELATIONS,
    Question,
    category_id,
    culture_id,
    normalise,
    parse_culture,
    question_key,
    register_culture,
)
from care_jax.data.readers import blend, pairs, rated, token_cache
from care_jax.data.readers import public_sets as sets
from care_jax.data.readers.rated import Known, user_turn
from care_jax.data.rows import fields as f
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.report import Report, write_report
from care_jax.data.rows.row import Row
from care_jax.data.rows.table import Table, open_table
from care_jax.errors import UserError, nearest
from care_jax.textfiles import JsonObject

__all__ = ["READERS", "ReaderSpec", "Reading", "read", "write_report"]

Reader = Callable[[Table, Known], list[Question]]


@dataclass(frozen=True, slots=True)
class ReaderSpec:
    """A reader: its name, what it reads, the fields it looks for with their other names."""

    name: str
    summary: str
    read: Reader
    aliases: Mapping[str, tuple[str, ...]]
    files: str | None = None  # a pattern: the files of a folder that it reads, where it does not read all


READERS: dict[str, ReaderSpec] = {
    spec.name: spec
    for spec in (
        ReaderSpec("care", "CARE: rated responses, both public schemas", rated.read_care, f.RATED),
        ReaderSpec("care_eval", "CARE's evaluation items, with references", rated.read_care_eval, f.RATED),
        ReaderSpec("rated", "any table of question, response, rating", rated.read_rated, f.RATED),
        ReaderSpec("preferences", "TRL's paired and unpaired formats", pairs.read_preferences, f.PREFERENCES),
        ReaderSpec("tokenized", "rows of token ids", pairs.read_tokenized, f.TOKENIZED),
        ReaderSpec("hh_rlhf", "HH-RLHF dialogues as messages", pairs.read_hh_rlhf, f.PREFERENCES),
        ReaderSpec("hh_rlhf_text", "HH-RLHF dialogues as text", pairs.read_hh_rlhf_text, f.PREFERENCES),
        ReaderSpec(
            "ultrafeedback", "UltraFeedback, 4 rated completions a row", sets.read_ultrafeedback, sets.ULTRAFEEDBACK
        ),
        ReaderSpec("oasst", "OpenAssistant message trees, ranked replies", sets.read_oasst, sets.OASST),
        ReaderSpec("prism", "PRISM conversations, rated at each turn", sets.read_prism, sets.PRISM),
        ReaderSpec("helpsteer", "HelpSteer: rated by helpfulness", rated.read_rated, f.HELPSTEER),
        ReaderSpec("cvalues", "CValues-Comparison pairs", pairs.read_preferences, f.CVALUES),
        ReaderSpec("tfds", "the TFDS dataset care, in ArrayRecord files", sets.read_tfds, sets.TFDS),
        ReaderSpec("sft", "instructions with a good response each", sets.read_sft, sets.SFT),
        ReaderSpec(
            "blend",
            "BLEnD's questions with their commonest answer",
            blend.read_blend,
            blend.BLEND,
            blend.FILES,
        ),
        ReaderSpec("prepared", "a token cache of `data prepare`", token_cache.read_prepared, {}),
    )
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one source gave: its questions, the account of them, and (file, SHA-256) of what was read."""

    questions: list[Question]
    report: Report
    files: tuple[tuple[str, str], ...] = ()


def read(
    reader: str,
    path: str,
    *,
    split: str | None = None,
    name: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    revision: str | None = None,
    cultures: Sequence[str] | None = None,
    relations: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    query_language: str = "native",
    translations: str | None = None,
    strict: bool = False,
    every_response: bool = False,
) -> Reading:
    """Reads a source and keeps what was asked for.

    path: a file (JSON, JSON lines, CSV, TSV, parquet; gzipped too), a folder of them, a hub id, or `sample`.
    split, name, revision: of a hub dataset or folder. columns: field -> column, for anyone's own file.
    cultures, relations, categories, sources: what to keep (None or empty: everything); aliases are understood, and a
    path to a culture's YAML file stands for that culture.
    query_language: `native`, or `english` to ask in the translation (`translations`: a file of question, culture,
    translated_question). strict: the first bad row raises. every_response: keeps duplicates and responses without a
    good rating, category or culture too (see `Report`). Mistakes raise `UserError`.
    """
    spec = READERS.get(reader)
    if spec is None:
        raise UserError(f"reader: found {reader!r}{nearest(reader, list(READERS))}, expected {', '.join(READERS)}")
    # A culture's own YAML file in the list makes it known, under all its names.
    cultures = [register_culture(c).id if c.endswith((".yaml", ".yml")) else c for c in cultures or ()]
    if reader == "prepared":
        given = {"split": split, "name": name, "revision": revision, "columns": columns, "translations": translations}
        for key, value in {**given, "query_language": None if query_language == "native" else query_language}.items():
            if value is not None:
                raise UserError(f"{key}: a token cache holds what it was prepared with; say {key} to data prepare")
        rows = token_cache.open_cache(str(path))
    else:
        rows = open_rows(str(path), split, name, revision, spec.files)
    known = Known(frozenset(map(culture_id, cultures or ())), frozenset(map(category_id, categories or ())))
    report = Report(strict=strict, every_response=every_response)
    questions = spec.read(Table(rows, f.Fields.make(spec.aliases, columns), report), known)
    if report.rows and report.dropped["unreadable"] == report.rows:
        first = report.rejected[0]
        raise UserError(f"{path}: none of {report.rows} rows can be read; row {first['row']}: {first['found']}")
    questions = _select(questions, report, str(path), cultures, relations, categories, sources)
    if query_language == "english":
        questions = _in_english(questions, str(path), translations)
    elif query_language != "native":
        raise UserError(f"query_language: expected native or english, found {query_language!r}")
    report.questions = questions
    return Reading(questions, report, tuple(rows.hashes))


def _select(
    questions: list[Question],
    report: Report,
    path: str,
    cultures: Sequence[str] | None,
    relations: Sequence[str] | None,
    categories: Sequence[str] | None,
    sources: Sequence[str] | None,
) -> list[Question]:
    """Keeps the questions, and their responses, that were asked for; counts the rest as not selected."""
    for relation in relations or ():
        if relation not in RELATIONS:
            raise UserError(f"relations: expected {' or '.join(RELATIONS)}, found {relation!r}")
    before = _rows_of(questions)
    kept = _keep(questions, "cultures", cultures, culture_id, _culture, path)
    kept = _keep(kept, "categories", categories, category_id, lambda q: q.category, path)
    if relations and set(relations) != set(RELATIONS):
        kept = [q for q in kept if q.relation in relations]
    if sources:
        present = {normalise(r.source): r.source for q in kept for r in q.responses}
        for source in sources:
            if normalise(source) not in present:
                _absent("sources", source, sorted(present.values()), path)
        wanted = set(map(normalise, sources))
        chosen = (
            dataclasses.replace(q, responses=tuple(r for r in q.responses if normalise(r.source) in wanted))
            for q in kept
        )
        kept = [q for q in chosen if q.responses]
    lost = before - _rows_of(kept)
    if lost:
        report.dropped["not_selected"] += lost
    return kept


def _culture(question: Question) -> str | None:
    """The question's culture; for data that only know languages, the one its language stands for."""
    return question.culture or (culture_id(question.language) if question.language else None)


def _rows_of(questions: Sequence[Question]) -> int:
    """How many rows these are: both responses of a pair are one."""
    return sum(r.field != "rejected" for q in questions for r in q.responses)


def _keep(
    questions: list[Question],
    key: str,
    wanted: Sequence[str] | None,
    identify: Callable[[str], str],
    of: Callable[[Question], str | None],
    path: str,
) -> list[Question]:
    if not wanted:
        return questions
    present = Counter(of(q) for q in questions)
    for value in wanted:
        if identify(value) not in present and questions:
            _absent(key, value, sorted(v for v in present if v), path)
    chosen = set(map(identify, wanted))
    return [q for q in questions if of(q) in chosen]


def _absent(key: str, value: str, present: list[str], path: str) -> None:
    raise UserError(f"{key}: {path} has no {value!r}{nearest(value, present)}; it has {', '.join(present) or 'none'}")


def _in_english(questions: list[Question], path: str, translations: str | None) -> list[Question]:
    """The questions asked in their English translation; their keys stay those of the original."""
    given = _translations(translations) if translations else {}
    asked, missing = [], []
    for question in questions:
        english = question.translated or given.get(question.key)
        if english is None and (question.language or "").split("-")[0].lower() in ("en", "eng", "english"):
            asked.append(question)
        elif english is None:
            missing.append(question)
        else:
            asked.append(dataclasses.replace(question, prompt=user_turn(english), translated=english, language="en"))
    if missing:
        raise UserError(
            f"query_language english: {len(missing)} of {len(questions)} questions in {path} have no translation"
            f" (the first: {missing[0].key.split(chr(9))[-1][:80]!r}); give `translations:` a file of question,"
            " culture, translated_question"
        )
    return asked


def _translations(path: str) -> dict[str, str]:
    """Returns question key -> English wording."""

    def parse(row: Row, values: JsonObject) -> tuple[str, str | None]:
        f.need(values, "question", "translated")
        question = f.text(values["question"], "question", "empty_question")
        name = f.optional_text(values.get("culture"), "culture")
        culture = (parse_culture(name)[1] or culture_id(name)) if name else None
        return question_key(question, culture), f.optional_text(values["translated"], "translated")

    pairs = open_table(path, f.RATED).parse(parse)
    return {key: english for key, english in pairs if english is not None}
