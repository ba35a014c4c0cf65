"""Annotation sheets for a new culture: the answers of several systems, blind and shuffled, out to raters and back.

    write_sheets("questions.jsonl", ["a.jsonl", "b.jsonl"], "sheets", raters=2)   # sheet-1.csv, sheet-2.csv, key.jsonl
    rows, agreement = import_sheets(["sheets/sheet-1.csv", "sheets/sheet-2.csv"], "sheets/key.jsonl")

Raters see neither the systems nor how often an answer was given. Texts come back from the key, byte for byte, never
from the sheet, which a spreadsheet may have changed.
"""

import csv
import hashlib
import io
import json
import pathlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from care_jax.data.questions import parse_category, parse_culture, question_key
from care_jax.data.rows import fields as f
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.row import Row, describe
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.textfiles import write_whole

_COLUMNS = ("item", "question", "response", "rating", "comment")
_SYSTEM = {"response": ("response",), "system": ("system", "source", "model"), "prompt": ("prompt",)}


def write_sheets(
    questions: str,
    responses: Sequence[str],
    folder: str,
    raters: int = 1,
    seed: int = 0,
    per_question: int | None = None,
) -> int:
    """Pools the responses to the questions, and writes one CSV a rater and the key; returns how many items there are.

    questions: rows of question, and culture, category, reference as far as they have them. responses: files of
    question (or prompt), response and system, as `care-jax generate` writes them. The same words from two systems are
    one item. Each rater's items are in an order of their own. per_question: at most so many, drawn by the seed.
    """
    asked = {_key(found): (row, found) for row, found in _rows(questions, f.RATED, ("question",))}
    pooled: dict[tuple[str, str], list[str]] = {}
    strangers = 0
    for path in responses:
        for row, found in _rows(path, f.RATED | _SYSTEM, ()):
            key = _key(found | {"question": found.get("question", found.get("prompt"))}, row)
            if key not in asked:
                strangers += 1
                continue
            text = found.get("response")
            if not isinstance(text, str) or not text.strip():
                continue  # an empty answer is nothing to rate; evaluation counts it
            system = found.get("system") or pathlib.Path(path).stem
            systems = pooled.setdefault((key, text), [])
            if system not in systems:
                systems.append(system)
    if not pooled:
        raise UserError(
            f"{', '.join(responses)}: no response to a question of {questions} ({strangers} to other questions)"
        )
    items = _items(asked, pooled, seed, per_question)
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / "key.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    for rater in range(1, raters + 1):
        shuffled = random.Random(f"{seed} {rater}").sample(items, len(items))
        write_whole(place / f"sheet-{rater}.csv", _sheet(shuffled))
    return len(items)


def _rows(path: str, aliases: Mapping[str, tuple[str, ...]], needed: Sequence[str]) -> list[tuple[Row, dict[str, Any]]]:
    """All rows of a file with their fields; a row that cannot be used ends it."""
    rows = []
    for row, found in open_table(path, aliases):
        for name in needed:
            if not isinstance(found.get(name), str) or not found[name].strip():
                raise UserError(f"{row.place}, {name}: expected text, found {describe(found.get(name))}")
        try:
            json.dumps(row.value, ensure_ascii=False, default=str).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{row.place}: text that is not valid Unicode") from None
        rows.append((row, found))
    return rows


def _key(found: Mapping[str, Any], row: Row | None = None) -> str:
    asked = found.get("question")
    if isinstance(asked, list):
        asked = asked[-1].get("content") if asked and isinstance(asked[-1], Mapping) else None
    if not isinstance(asked, str):
        raise UserError(f"{row.place if row else ''}, question: expected text, found {describe(found.get('question'))}")
    return question_key(asked, None)


def _items(
    asked: Mapping[str, tuple[Row, Mapping[str, Any]]],
    pooled: Mapping[tuple[str, str], list[str]],
    seed: int,
    per_question: int | None,
) -> list[dict[str, Any]]:
    by_question: dict[str, list[dict[str, Any]]] = {}
    for (key, text), systems in pooled.items():
        identity = hashlib.sha256(f"{seed}\0{key}\0{text}".encode()).hexdigest()[:12]
        row, found = asked[key]
        item = {"item": identity, "response": text, "systems": systems, "row": dict(row.value or {})}
        by_question.setdefault(key, []).append(item | {"question": found["question"]})
    items = []
    for key in asked:
        # Drawn by the items' hashes: which are drawn depends on the seed and not on the order of the files.
        drawn = sorted(by_question.get(key, []), key=lambda item: item["item"])
        items += drawn[:per_question]
    return items


def _sheet(items: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a byte order mark, without which spreadsheets take Arabic and Chinese for Latin."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(_COLUMNS)
    for item in items:
        table.writerow([item["item"], _harmless(item["question"]), _harmless(item["response"]), "", ""])
    return "\ufeff" + text.getvalue()


def _harmless(text: str) -> str:
    """A cell that a spreadsheet does not take for a formula."""
    return "'" + text if text[:1] in "=+-@\t\r" and text[:1] else text


@dataclass(frozen=True, slots=True)
class SheetAgreement:
    """How far raters agree. alpha: Krippendorff's, ordinal, over items of two ratings or more; None without such.

    items: item -> (raters, mean, range). unrated: items that nobody rated.
    """

    alpha: float | None
    items: dict[str, tuple[int, float, float]]
    unrated: int


def import_sheets(sheets: Sequence[str], key: str) -> tuple[list[dict[str, Any]], SheetAgreement]:
    """Rows in CARE's schema from filled sheets (human_rating is the raters' mean; `ratings` holds each), and agreement.

    Blank ratings are not rated. `UserError` names the sheet and line of a rating that is none, or an unknown item.
    """
    items: dict[str, dict[str, Any]] = {}
    for row in open_rows(key):
        value = row.value
        if value is None or not all(name in value for name in ("item", "question", "response", "systems", "row")):
            raise UserError(f"{row.place}: not a row of a sheet's key ({row.problem or 'fields are missing'})")
        items[value["item"]] = dict(value)
    ratings: dict[str, dict[str, float]] = {item: {} for item in items}
    raters = [pathlib.Path(sheet).stem for sheet in sheets]
    if len(set(raters)) < len(raters):
        raise UserError(f"two sheets have one name, which stands for the rater: {', '.join(sheets)}")
    for sheet, rater in zip(sheets, raters):
        for line, identity, cell in _filled(sheet):
            if identity not in items:
                raise UserError(f"{sheet} (line {line}): no item {identity!r} in {key}")
            if cell.strip():
                try:
                    ratings[identity][rater] = f.rating(cell, "rating", 1.0, 10.0)
                except f.BadField as bad:
                    raise UserError(f"{sheet} (line {line}), rating: expected 1 to 10, found {bad.value}") from bad
    rows = []
    for identity, given in ratings.items():
        if given:
            item = items[identity]
            mean = sum(given.values()) / len(given)
            rows.append(
                {key: value for key, value in item["row"].items() if key not in ("response", "source", "human_rating")}
                | {"response": item["response"], "human_rating": int(mean) if mean.is_integer() else mean}
                | {"source": "+".join(item["systems"]), "ratings": given, "item": identity}
            )
    return rows, _agreement(ratings, raters)


def _filled(sheet: str) -> list[tuple[int, str, str]]:
    """(line, item, rating) of each row of a filled sheet, whichever delimiter the spreadsheet saved it with."""
    try:
        text = pathlib.Path(sheet).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{sheet}: cannot be read as UTF-8: {error}") from error
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = {f.fold(name): name for name in reader.fieldnames or () if name}
    if "item" not in names or "rating" not in names:
        raise UserError(f"{sheet}: expected the columns {', '.join(_COLUMNS)}, found {header.strip()[:80]!r}")
    return [
        (reader.line_num, (row[names["item"]] or "").strip(), row[names["rating"]] or "")
        for row in reader
        if any(cell for cell in row.values() if isinstance(cell, str) and cell.strip())
    ]


def _agreement(ratings: Mapping[str, Mapping[str, float]], raters: Sequence[str]) -> SheetAgreement:
    items = {
        item: (len(given), sum(given.values()) / len(given), max(given.values()) - min(given.values()))
        for item, given in ratings.items()
        if given
    }
    shared = [given for given in ratings.values() if len(given) > 1]
    alpha = None
    if len({value for given in shared for value in given.values()}) > 1:
        try:
            import krippendorff
        except ModuleNotFoundError as error:
            raise UserError("agreement between raters needs krippendorff: pip install krippendorff") from error
        table = [[given.get(rater, float("nan")) for given in shared] for rater in raters]
        alpha = float(krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"))
    return SheetAgreement(alpha, items, len(ratings) - len(items))


def _cell(found: Mapping[str, Any]) -> tuple[str, str]:
    """(culture, category) by their ids: 'Native (Arab)' and 'ar' are one culture, and unknown names are their own."""
    culture, category = (str(found.get(name) or "none") for name in ("culture", "category"))
    return parse_culture(culture)[1] or culture, parse_category(category) or category


def split(path: str, per_category: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, evaluation rows) of a file: per_category questions of each culture and category are held out.

    All rows of a question go together, with every column as it stands. The questions are drawn by a hash of
    (seed, key), so adding questions moves few. `UserError` where a category has too few questions to leave any.
    """
    rows = _rows(path, f.RATED, ("question",))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    keys = []
    for _, found in rows:
        culture, category = _cell(found)
        key = question_key(found["question"], culture)
        keys.append(key)
        cells.setdefault((culture, category), {})[key] = hashlib.sha256(f"{seed}\0{key}".encode()).hexdigest()
    held: set[str] = set()
    for (culture, category), ranks in cells.items():
        if len(ranks) <= per_category:
            raise UserError(
                f"{path}: {culture}, {category} has {len(ranks)} questions: {per_category} cannot be held out of them"
            )
        held.update(sorted(ranks, key=lambda key: ranks[key])[:per_category])
    values = [dict(row.value or {}) for row, _ in rows]
    train = [value for value, key in zip(values, keys) if key not in held]
    return train, [value for value, key in zip(values, keys) if key in held]
