"""Annotation sheets for a new culture: blind, shuffled responses of several systems for raters, and their ratings.

    write_sheets("questions.jsonl", ["a.jsonl", "b.jsonl"], "sheets", raters=2)   # sheet-1.csv, sheet-2.csv, key.jsonl
    rows, agreement = import_sheets(["sheets/sheet-1.csv", "sheets/sheet-2.csv"], "sheets/key.jsonl")

Raters see neither the systems nor how many of them gave a response. Texts are read back from the key, never from the
sheet, as a spreadsheet program may change them.
"""

import csv
import hashlib
import io
import json
import pathlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from care_jax.data.cultures import parse_category, parse_culture
from care_jax.data.questions import question_key
from care_jax.data.rows import fields
from care_jax.data.rows.fields import BadField
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.row import Row, describe
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject, write_lines, write_whole

_COLUMNS = ("item", "question", "response", "rating", "comment")
_RESPONSES = fields.RATED | {"response": ("response",), "system": ("system", "source", "model"), "prompt": ("prompt",)}


def write_sheets(
    questions: str,
    responses: Sequence[str],
    folder: str,
    raters: int = 1,
    seed: int = 0,
    per_question: int | None = None,
) -> int:
    """Pools the responses to the questions, writes a CSV per rater and the key, and returns the number of items.

    questions: rows of question, optionally with culture, category, reference. responses: files of question (or prompt),
    response and system, as `care-jax generate` writes them. The same text from two systems is one item. Each rater's
    items have their own order. per_question: at most so many items per question, drawn by the seed.
    """
    by_key = {_key(row, values): (row, values) for row, values in _read_rows(questions, fields.RATED)}
    pooled: dict[tuple[str, str], list[str]] = {}  # (question key, response) -> systems
    unmatched = 0
    for path in responses:
        for row, values in _read_rows(path, _RESPONSES, question_required=False):
            key, text = _key(row, {"question": values.get("prompt"), **values}), values.get("response")
            if key not in by_key:
                unmatched += 1
            elif isinstance(text, str) and text.strip():  # an empty response cannot be rated; evaluation counts it
                pooled.setdefault((key, text), []).append(values.get("system") or pathlib.Path(path).stem)
    if not pooled:
        files = ", ".join(responses)
        raise UserError(f"{files}: no response to a question of {questions} ({unmatched} to other questions)")
    items = _items(by_key, pooled, seed, per_question)
    out = pathlib.Path(folder)
    write_lines(out / "key.jsonl", items)
    for rater in range(1, raters + 1):
        write_whole(out / f"sheet-{rater}.csv", _sheet(random.Random(f"{seed} {rater}").sample(items, len(items))))
    return len(items)


def _read_rows(
    path: str, aliases: Mapping[str, tuple[str, ...]], *, question_required: bool = True
) -> list[tuple[Row, JsonObject]]:
    """Returns all rows of a file with their fields; raises `UserError` for a row that cannot be used."""
    rows = list(open_table(path, aliases))
    for row, values in rows:
        question = values.get("question")
        if question_required and not (isinstance(question, str) and question.strip()):
            raise UserError(f"{row.place}, question: expected text, found {describe(question)}")
        try:
            json.dumps(row.value, ensure_ascii=False, default=str).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{row.place}: text that is not valid Unicode") from None
    return rows


def _key(row: Row, values: Mapping[str, object]) -> str:
    """Returns the key of a row's question, which may be messages: then the last one counts."""
    question = values.get("question")
    if isinstance(question, list):
        question = question[-1].get("content") if question and isinstance(question[-1], Mapping) else None
    if not isinstance(question, str):
        raise UserError(f"{row.place}, question: expected text, found {describe(values.get('question'))}")
    return question_key(question, None)


def _items(
    by_key: Mapping[str, tuple[Row, JsonObject]],
    pooled: Mapping[tuple[str, str], list[str]],
    seed: int,
    per_question: int | None,
) -> list[JsonObject]:
    by_question: dict[str, list[JsonObject]] = {}
    for (key, text), systems in pooled.items():
        identity = hashlib.sha256(f"{seed}\0{key}\0{text}".encode()).hexdigest()[:12]
        row, values = by_key[key]
        item = {"item": identity, "response": text, "systems": list(dict.fromkeys(systems)), "row": row.value or {}}
        by_question.setdefault(key, []).append(item | {"question": values["question"]})
    # Drawn by the hashes of the items: the draw depends on the seed and not on the order of the files.
    ordered = (sorted(by_question.get(key, []), key=lambda item: item["item"]) for key in by_key)
    return [item for question_items in ordered for item in question_items[:per_question]]


def _sheet(items: Sequence[JsonObject]) -> str:
    """Returns CSV with a byte order mark, as spreadsheet programs otherwise do not read Arabic and Chinese."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(_COLUMNS)
    for item in items:
        table.writerow([item["item"], _escape(item["question"]), _escape(item["response"]), "", ""])
    return "\ufeff" + text.getvalue()


def _escape(text: str) -> str:
    """Returns the text as a cell that a spreadsheet program does not take for a formula."""
    return "'" + text if text[:1] in "=+-@\t\r" and text[:1] else text


@dataclass(frozen=True, slots=True)
class SheetAgreement:
    """The agreement of the raters.

    alpha: Krippendorff's alpha (ordinal) over items with at least two ratings; None if it is undefined. items: item ->
    (raters, mean, range). unrated: number of items that nobody rated.
    """

    alpha: float | None
    items: dict[str, tuple[int, float, float]]
    unrated: int


def import_sheets(sheets: Sequence[str], key: str) -> tuple[list[JsonObject], SheetAgreement]:
    """Returns the rows of filled sheets in CARE's schema, and the raters' agreement.

    human_rating is the mean over the raters; `ratings` holds each. A blank rating means not rated. Raises `UserError`
    with sheet and line for an invalid rating or an unknown item.
    """
    items = _read_key(key)
    raters = [pathlib.Path(sheet).stem for sheet in sheets]
    if len(set(raters)) < len(raters):
        raise UserError(f"two sheets have the same file name, which names the rater: {', '.join(sheets)}")
    ratings: dict[str, dict[str, float]] = {item: {} for item in items}
    for sheet, rater in zip(sheets, raters):
        for line, identity, cell in _read_sheet(sheet):
            if identity not in items:
                raise UserError(f"{sheet} (line {line}): no item {identity!r} in {key}")
            if cell.strip():
                try:
                    ratings[identity][rater] = fields.rating(cell, "rating", 1.0, 10.0)
                except BadField as bad:
                    raise UserError(f"{sheet} (line {line}), rating: expected 1 to 10, found {bad.value}") from bad
    rows = [_rated_row(items[identity], by_rater) for identity, by_rater in ratings.items() if by_rater]
    return rows, _agreement(ratings, raters)


def _read_key(path: str) -> dict[str, JsonObject]:
    """Returns item -> its row of the key."""
    items: dict[str, JsonObject] = {}
    for row in open_rows(path):
        item = row.value
        if item is None or not all(name in item for name in ("item", "question", "response", "systems", "row")):
            raise UserError(f"{row.place}: not a row of a sheet's key ({row.problem or 'fields are missing'})")
        items[item["item"]] = item
    return items


def _rated_row(item: JsonObject, by_rater: dict[str, float]) -> JsonObject:
    mean = sum(by_rater.values()) / len(by_rater)
    return {
        **{name: value for name, value in item["row"].items() if name not in ("response", "source", "human_rating")},
        "response": item["response"],
        "human_rating": int(mean) if mean.is_integer() else mean,
        "source": "+".join(item["systems"]),
        "ratings": by_rater,
        "item": item["item"],
    }


def _read_sheet(sheet: str) -> list[tuple[int, str, str]]:
    """Returns (line, item, rating) of each row of a filled sheet, with any of the usual delimiters."""
    try:
        text = pathlib.Path(sheet).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{sheet}: cannot be read as UTF-8: {error}") from error
    header = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    names = {fields.fold(name): name for name in reader.fieldnames or () if name}
    if "item" not in names or "rating" not in names:
        raise UserError(f"{sheet}: expected the columns {', '.join(_COLUMNS)}, found {header.strip()[:80]!r}")
    return [
        (reader.line_num, (row[names["item"]] or "").strip(), row[names["rating"]] or "")
        for row in reader
        if any(cell for cell in row.values() if isinstance(cell, str) and cell.strip())
    ]


def _agreement(ratings: Mapping[str, Mapping[str, float]], raters: Sequence[str]) -> SheetAgreement:
    rated = {item: list(by_rater.values()) for item, by_rater in ratings.items() if by_rater}
    items = {item: (len(r), sum(r) / len(r), max(r) - min(r)) for item, r in rated.items()}
    shared = [by_rater for by_rater in ratings.values() if len(by_rater) > 1]
    alpha = None
    if len({value for by_rater in shared for value in by_rater.values()}) > 1:
        try:
            import krippendorff
        except ModuleNotFoundError as error:
            raise UserError("agreement between raters needs krippendorff: pip install krippendorff") from error
        table = [[by_rater.get(rater, float("nan")) for by_rater in shared] for rater in raters]
        alpha = float(krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"))
    return SheetAgreement(alpha, items, len(ratings) - len(items))


def split(path: str, per_category: int, seed: int = 0) -> tuple[list[JsonObject], list[JsonObject]]:
    """Returns (training rows, evaluation rows), with `per_category` questions of each culture and category held out.

    All rows of a question stay together, with all their columns. The questions are drawn by a hash of (seed, key), so
    that adding questions changes few. Raises `UserError` if a category has too few questions to leave any.
    """
    rows = _read_rows(path, fields.RATED)
    ranks: dict[tuple[str, str], dict[str, str]] = {}  # (culture, category) -> question key -> hash
    keys = []
    for _, values in rows:
        culture, category = _culture_and_category(values)
        keys.append(key := question_key(values["question"], culture))
        ranks.setdefault((culture, category), {})[key] = hashlib.sha256(f"{seed}\0{key}".encode()).hexdigest()
    held_out: set[str] = set()
    for (culture, category), by_key in ranks.items():
        if len(by_key) <= per_category:
            reason = f"has {len(by_key)} questions: {per_category} cannot be held out of them"
            raise UserError(f"{path}: {culture}, {category} {reason}")
        held_out.update(sorted(by_key, key=by_key.__getitem__)[:per_category])
    keyed = [(row.value or {}, key) for (row, _), key in zip(rows, keys)]
    return [row for row, key in keyed if key not in held_out], [row for row, key in keyed if key in held_out]


def _culture_and_category(values: JsonObject) -> tuple[str, str]:
    """Returns the ids: 'Native (Arab)' and 'ar' are one culture; unknown names are kept."""
    culture, category = (str(values.get(name) or "none") for name in ("culture", "category"))
    return parse_culture(culture)[1] or culture, parse_category(category) or category
