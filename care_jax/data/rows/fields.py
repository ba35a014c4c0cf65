"""Finds the fields of a row by alias tables and the user's `columns:` map, and parses single fields."""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from care_jax.data.questions import Message
from care_jax.data.rows.row import describe
from care_jax.errors import UserError, nearest
from care_jax.textfiles import JsonObject

# The names that the column of each field may have, compared without case, white space, '_' and '-'. If a row has
# several of them, the first in this order counts.
RATED = {
    "question": ("question", "prompt", "query"),
    "response": ("response", "completion", "model_response"),
    "rating": ("human_rating", "rating", "score"),
    "category": ("cul_type", "culture_type", "category"),
    "culture": ("associated_culture", "culture"),
    "source": ("source", "model", "system"),
    "reference": ("answer", "reference", "gold", "reference_answer"),
    "translated": ("translated_question (optional)", "translated_question", "question_en"),
    "language": ("language", "lang"),
}
_ABOUT = {key: RATED[key] for key in ("culture", "category", "language", "translated")}
PREFERENCES = {
    "prompt": ("prompt", "question", "instruction"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "completion": ("completion", "response"),
    "label": ("label", "desirable"),
    **_ABOUT,
}
HELPSTEER = RATED | {"rating": ("helpfulness",)}
CVALUES = PREFERENCES | {"chosen": ("pos_resp",), "rejected": ("neg_resp",)}
TOKENIZED = {
    "prompt_ids": ("prompt_ids", "prompt_input_ids"),
    "chosen_ids": ("chosen_ids", "chosen_input_ids"),
    "rejected_ids": ("rejected_ids", "rejected_input_ids"),
    "completion_ids": ("completion_ids", "completion_input_ids"),
    "label": ("label", "desirable"),
    **_ABOUT,
}


def fold(name: str) -> str:
    """Returns a column's name in the form in which names are compared."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


@dataclass(slots=True)
class FieldFinder:
    """Finds the fields of rows.

    aliases: field -> the names that its column may have. columns: the user's map, field -> column; None says that the
    data do not have the field.
    """

    aliases: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, str | None]
    _matches: dict[tuple[str, ...], list[tuple[str, str]]] = field(default_factory=dict)

    @classmethod
    def make(cls, aliases: Mapping[str, tuple[str, ...]], columns: Mapping[str, str | None] | None) -> "FieldFinder":
        """Checks the keys of the user's map, each a field or an alias of one, and makes the finder."""
        by_alias = {fold(name): key for key, names in aliases.items() for name in (*names, key)}
        checked: dict[str, str | None] = {}
        for name, column in (columns or {}).items():
            key = by_alias.get(fold(str(name)))
            if key is None:
                raise UserError(
                    f"columns: no field {name!r}{nearest(str(name), list(aliases))}; fields are {', '.join(aliases)}"
                )
            if column is not None and not isinstance(column, str):
                raise UserError(f"columns.{name}: expected the name of a column, found {describe(column)}")
            checked[key] = column
        return cls(aliases, checked)

    def of(self, row: Mapping[str, object]) -> JsonObject:
        """Returns field -> value of the fields that the row has."""
        columns = tuple(row)
        if columns not in self._matches:
            self._matches[columns] = self._match(columns)
        return {key: row[column] for key, column in self._matches[columns]}

    def _match(self, columns: tuple[str, ...]) -> list[tuple[str, str]]:
        """Returns (field, column) of the fields that a row with these columns has."""
        by_folded: dict[str, str] = {}
        for column in columns:
            by_folded.setdefault(fold(str(column)), column)
        matches: list[tuple[str, str]] = []
        for key, aliases in self.aliases.items():
            names = (self.columns[key],) if key in self.columns else (*aliases, key)
            folded = (fold(name) for name in names if name is not None)
            matches += [(key, by_folded[name]) for name in folded if name in by_folded][:1]
        return matches


class BadField(Exception):
    """A field cannot be used. reason: what its row counts under; field: its name; value: what was found, in words."""

    def __init__(self, reason: str, field: str, value: str):
        super().__init__(reason, field, value)
        self.reason, self.field, self.value = reason, field, value


def need(values: Mapping[str, object], *names: str) -> None:
    """Raises `BadField` for the first of these fields that the row does not have."""
    for name in names:
        if name not in values:
            raise BadField("missing_field", name, "no such key")


def encodable(text: str, name: str) -> str:
    """Returns the text; raises `BadField` if it holds half a surrogate pair or bytes that were not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadField("unreadable", name, f"not valid Unicode at character {error.start}") from error
    return text


def text(value: object, name: str, reason: str) -> str:
    """Returns a text that is not blank, unchanged; else raises `BadField` with this reason."""
    if not isinstance(value, str) or not value.strip():
        raise BadField(reason, name, describe(value))
    return encodable(value, name)


def optional_text(value: object, name: str) -> str | None:
    """Returns the text, or None if it is absent, blank or of another type."""
    return encodable(value, name) if isinstance(value, str) and value.strip() else None


def rating(value: object, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns 7.0 for 7, 7.0, '7', ' 7 ', '7.0' and full-width digits.

    Raises `BadField` (invalid_rating) for anything else, and outside of `low` to `high`.
    """
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else math.nan
    elif isinstance(value, str):
        plain = unicodedata.normalize("NFKC", value).strip()
        if re.fullmatch(r"[+-]?\d{1,15}(\.\d{1,15})?", plain):
            number = float(plain)
    if not (math.isfinite(number) and low <= number <= high):
        raise BadField("invalid_rating", name, describe(value))
    return number


def messages(value: object, name: str, reason: str) -> tuple[Message, ...]:
    """Returns a conversation from a list of {role, content}, where content is text or a list of text parts."""
    if not isinstance(value, list | tuple) or not value:
        raise BadField(reason, name, describe(value))
    turns = []
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
            raise BadField(reason, name, f"not a message with role and content: {describe(item)}")
        content = item.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
                raise BadField(reason, name, f"a message part without text: {describe(content)}")
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise BadField(reason, name, f"a message without text: {describe(item)}")
        turns.append({"role": item["role"], "content": encodable(content, name)})
    if not turns[-1]["content"].strip():
        raise BadField(reason, name, "its last message is blank")
    return tuple(turns)


def content(value: object, name: str, reason: str) -> str | tuple[Message, ...]:
    """Returns text or messages, whichever the value is."""
    return text(value, name, reason) if isinstance(value, str) or value is None else messages(value, name, reason)


def ids(value: object, name: str, reason: str) -> tuple[int, ...]:
    """Returns token ids from a list that is not empty."""
    if not isinstance(value, list | tuple) or not value:
        raise BadField(reason, name, describe(value))
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**31:
            raise BadField(reason, name, f"not a token id: {describe(item)}")
    return tuple(value)


def label(value: object) -> bool:
    """Returns true or false, also from 1 and 0 or words; raises `BadField` (invalid_rating) for anything else."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    flag = words.get(value.strip().casefold()) if isinstance(value, str) else value
    if isinstance(flag, bool | int | float) and flag in (0, 1):
        return bool(flag)
    raise BadField("invalid_rating", "label", describe(value))
