"""The table of readers, and `read`, which runs one: from a dataset to questions with rated responses.

A reader is a function `(Table, Known) -> list[Question]`. If each row is a question, `per_row` makes one
of a function `(Row, values) -> Question`. `Table.parse` drops a row for which that raises `BadField`.

reading = readers.read("care", "care.jsonl", cultures=["arab"])
reading.questions, reading.report.to_json()
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from care_jax.data.cultures import RELATIONS, category_id, culture_id, parse_culture, register_culture
from care_jax.data.questions import Question, normalise, question_key, user_turn
from care_jax.data.readers import blend, pairs, rated, token_cache
from care_jax.data.readers import public_sets as sets
from care_jax.data.readers.pairs import per_row
from care_jax.data.readers.rated import Known
from care_jax.data.rows import fields
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.report import Report
from care_jax.data.rows.row import Row
from care_jax.data.rows.table import Table, open_table
from care_jax.errors import UserError, nearest
from care_jax.textfiles import JsonObject

Reader = Callable[[Table, Known], list[Question]]
QUERY_LANGUAGES = ("native", "english")


@dataclass(frozen=True, slots=True)
class ReaderSpec:
    """A reader: its name, what it reads, and its fields with the names that their columns may have.

    files: a pattern; of a folder, the reader reads only files whose names match it.
    """

    name: str
    summary: str
    reader: Reader
    aliases: Mapping[str, tuple[str, ...]]
    files: str | None = None


READERS: dict[str, ReaderSpec] = {
    spec.name: spec
    for spec in (
        ReaderSpec("care", "CARE: rated responses, both public schemas", rated.read_care, fields.RATED),
        ReaderSpec("care_eval", "CARE's evaluation items, with references", rated.read_care_eval, fields.RATED),
        ReaderSpec("rated", "any table of question, response, rating", rated.read_rated, fields.RATED),
        ReaderSpec("preferences", "TRL's paired and unpaired formats", per_row(pairs.preference), fields.PREFERENCES),
        ReaderSpec("tokenized", "rows of token ids", per_row(pairs.tokenized), fields.TOKENIZED),
        ReaderSpec("hh_rlhf", "HH-RLHF dialogues as messages", per_row(pairs.dialogue_pair), fields.PREFERENCES),
        ReaderSpec("hh_rlhf_text", "HH-RLHF dialogues as text", per_row(pairs.text_dialogue_pair), fields.PREFERENCES),
        ReaderSpec("ultrafeedback", "UltraFeedback, 4 rated completions", sets.read_ultrafeedback, sets.ULTRAFEEDBACK),
        ReaderSpec("oasst", "OpenAssistant message trees, ranked replies", sets.read_oasst, sets.OASST),
        ReaderSpec("prism", "PRISM conversations, rated at each turn", sets.read_prism, sets.PRISM),
        ReaderSpec("helpsteer", "HelpSteer: rated by helpfulness", rated.read_rated, fields.HELPSTEER),
        ReaderSpec("cvalues", "CValues-Comparison pairs", per_row(pairs.preference), fields.CVALUES),
        ReaderSpec("tfds", "the TFDS dataset care, in ArrayRecord files", sets.read_tfds, sets.TFDS),
        ReaderSpec("sft", "instructions with one good response each", per_row(pairs.instruction), pairs.SFT),
        ReaderSpec("blend", "BLEnD's questions, most frequent answers", blend.read_blend, blend.BLEND, blend.FILES),
        ReaderSpec("prepared", "a token cache that `data prepare` wrote", token_cache.read_prepared, {}),
    )
}


def find_reader(name: str, key: str = "reader") -> ReaderSpec:
    """Returns the reader of this name. Raises UserError if there is none. key: names the name's place, for messages."""
    if name not in READERS:
        raise UserError(f"{key}: found {name!r}{nearest(name, list(READERS))}, expected {', '.join(READERS)}")
    return READERS[name]


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of reading one source. files: (file, SHA-256) of each file read."""

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
    """Reads a source, and keeps the questions and responses that are selected.

    path: a file (JSON, JSON lines, CSV, TSV, parquet; gzipped too), a folder of them, a hub id, or `sample`.
    split, name, revision: which part and version of a hub dataset or folder to read (`rows.files.open_rows`).
    columns: field -> column, for data with other column names.
    cultures, relations, categories, sources: what to keep (None or empty: everything). Aliases are accepted, and a
    path to a culture's YAML file stands for that culture.
    query_language: `native`, or `english` to ask the English translation (translations: a file of question, culture,
    translated_question). strict: the first row that cannot be used raises `UserError`. every_response: keeps duplicates
    and responses without a valid rating, category or culture (see `Report`). Raises `UserError` for any mistake.
    """
    spec = find_reader(reader)
    if query_language not in QUERY_LANGUAGES:
        raise UserError(f"query_language: expected {' or '.join(QUERY_LANGUAGES)}, found {query_language!r}")
    # A culture's YAML file in the list registers the culture under all its names.
    cultures = [register_culture(c).id if c.endswith((".yaml", ".yml")) else c for c in cultures or ()]
    if reader == "prepared":
        options = {"split": split, "name": name, "revision": revision, "columns": columns, "translations": translations}
        for key, value in {**options, "query_language": query_language if query_language != "native" else None}.items():
            if value is not None:
                raise UserError(f"{key}: a token cache holds what it was prepared with; give {key} to `data prepare`")
        rows = token_cache.open_cache(str(path))
    else:
        rows = open_rows(str(path), split, name, revision, spec.files)
    known = Known(frozenset(map(culture_id, cultures)), frozenset(map(category_id, categories or ())))
    report = Report(strict=strict, every_response=every_response)
    questions = spec.reader(Table(rows, fields.FieldFinder.make(spec.aliases, columns), report), known)
    if report.rows and report.dropped["unreadable"] == report.rows:
        first = report.rejected[0]
        raise UserError(f"{path}: none of {report.rows} rows can be read; row {first['row']}: {first['found']}")
    selection = _Selection(str(path), cultures, relations or (), categories or (), sources or ())
    kept = selection.select(questions)
    if not_selected := _count_rows(questions) - _count_rows(kept):
        report.dropped["not_selected"] += not_selected
    report.questions = _in_english(kept, str(path), translations) if query_language == "english" else kept
    return Reading(report.questions, report, tuple(rows.hashes))


def _count_rows(questions: Sequence[Question]) -> int:
    """Returns the number of rows that these questions come from; the two responses of a pair are one row."""
    return sum(r.field != "rejected" for q in questions for r in q.responses)


@dataclass(frozen=True, slots=True)
class _Selection:
    """What to keep of a source; an empty sequence keeps everything."""

    path: str
    cultures: Sequence[str]
    relations: Sequence[str]
    categories: Sequence[str]
    sources: Sequence[str]

    def select(self, questions: list[Question]) -> list[Question]:
        """Returns the selected questions with their selected responses."""
        for relation in self.relations:
            if relation not in RELATIONS:
                raise UserError(f"relations: expected {' or '.join(RELATIONS)}, found {relation!r}")
        kept = questions
        if self.cultures:
            ids = self._ids("cultures", self.cultures, culture_id, set(map(_culture, kept)))
            kept = [question for question in kept if _culture(question) in ids]
        if self.categories:
            ids = self._ids("categories", self.categories, category_id, {question.category for question in kept})
            kept = [question for question in kept if question.category in ids]
        if self.relations and set(self.relations) != set(RELATIONS):
            kept = [question for question in kept if question.relation in self.relations]
        return self._keep_sources(kept) if self.sources else kept

    def _ids(
        self, key: str, names: Sequence[str], identify: Callable[[str], str], present: set[str | None]
    ) -> set[str]:
        """Returns the ids of names and aliases; raises `UserError` for one that no question has."""
        for name in names:
            if present and identify(name) not in present:
                raise self._absent(key, name, sorted(filter(None, present)))
        return set(map(identify, names))

    def _keep_sources(self, questions: list[Question]) -> list[Question]:
        present = {normalise(r.source): r.source for q in questions for r in q.responses}
        chosen = set(map(normalise, self.sources))
        for source in self.sources:
            if normalise(source) not in present:
                raise self._absent("sources", source, sorted(present.values()))
        responses = (tuple(r for r in q.responses if normalise(r.source) in chosen) for q in questions)
        return [dataclasses.replace(q, responses=kept) for q, kept in zip(questions, responses) if kept]

    def _absent(self, key: str, name: str, present: list[str]) -> UserError:
        names = ", ".join(present) or "none"
        return UserError(f"{key}: {self.path} has no {name!r}{nearest(name, present)}; it has {names}")


def _culture(question: Question) -> str | None:
    """Returns the question's culture; if it only has a language, the culture of that language."""
    return question.culture or (culture_id(question.language) if question.language else None)


def _in_english(questions: list[Question], path: str, translations: str | None) -> list[Question]:
    """Returns the questions with their English translations as prompts; their keys stay those of the originals."""
    from_file = _read_translations(translations) if translations else {}
    translated, missing = [], []
    for question in questions:
        english = question.translated or from_file.get(question.key)
        if english is not None:
            prompt = user_turn(english)
            translated.append(dataclasses.replace(question, prompt=prompt, translated=english, language="en"))
        elif (question.language or "").split("-")[0].lower() in ("en", "eng", "english"):
            translated.append(question)
        else:
            missing.append(question)
    if missing:
        raise UserError(
            f"query_language english: {len(missing)} of {len(questions)} questions in {path} have no translation"
            f" (the first: {missing[0].key.split(chr(9))[-1][:80]!r}); give `translations:` a file of question,"
            " culture, translated_question"
        )
    return translated


def _read_translations(path: str) -> dict[str, str]:
    """Returns question key -> English wording."""

    def parse(row: Row, values: JsonObject) -> tuple[str, str | None]:
        fields.need(values, "question", "translated")
        question = fields.text(values["question"], "question", "empty_question")
        name = fields.optional_text(values.get("culture"), "culture")
        culture = (parse_culture(name)[1] or culture_id(name)) if name else None
        return question_key(question, culture), fields.optional_text(values["translated"], "translated")

    return {key: english for key, english in open_table(path, fields.RATED).parse(parse) if english is not None}
