"""Columns by their meaning: alias tables, the user's own `columns:` map, and the parsing of single fields."""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from care_jax.data.questions import Content, Message
from care_jax.data.rows.files import Row, describe
from care_jax.data.rows.report import Report
from care_jax.errors import UserError, nearest

# What each field may be called; compared without case, white space, '_' and '-'. The first that a row has is taken.
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
    """A column's name for comparing."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


@dataclass(slots=True)
class Fields:
    """Finds fields in rows. aliases: field -> names it may have. columns: the user's own map, field -> column.

    A column of null in the map says that the data has no such field.
    """

    aliases: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, str | None]
    _known: dict[tuple[str, ...], list[tuple[str, str]]] = field(default_factory=dict)

    @classmethod
    def make(cls, aliases: Mapping[str, tuple[str, ...]], columns: Mapping[str, str | None] | None) -> "Fields":
        """Checks the user's map: its keys are fields or aliases of them."""
        by_alias = {fold(name): key for key, names in aliases.items() for name in (*names, key)}
        mapped: dict[str, str | None] = {}
        for name, column in (columns or {}).items():
            key = by_alias.get(fold(str(name)))
            if key is None:
                raise UserError(
                    f"columns: no field {name!r}{nearest(str(name), list(aliases))}; fields are {', '.join(aliases)}"
                )
            if column is not None and not isinstance(column, str):
                raise UserError(f"columns.{name}: expected the name of a column, found {describe(column)}")
            mapped[key] = column
        return cls(aliases, mapped)

    def of(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """field -> value, of those that the row has."""
        names = tuple(value)
        places = self._known.get(names)
        if places is None:
            places = self._known[names] = self._places(names)
        return {key: value[name] for key, name in places}

    def _places(self, names: tuple[str, ...]) -> list[tuple[str, str]]:
        folded: dict[str, str] = {}
        for name in names:
            folded.setdefault(fold(str(name)), name)
        places = []
        for key, aliases in self.aliases.items():
            wanted = (*aliases, key)
            if key in self.columns:
                column = self.columns[key]
                wanted = () if column is None else (column,)
            found = next((folded[fold(alias)] for alias in wanted if fold(alias) in folded), None)
            if found is not None:
                places.append((key, found))
        return places


class Bad(Exception):
    """A field that cannot be used: the reason it counts under, which field, what was found."""

    def __init__(self, reason: str, field: str, found: str):
        super().__init__(reason, field, found)
        self.reason, self.field, self.found = reason, field, found


def need(fields: Mapping[str, Any], *names: str) -> None:
    """Raises `Bad` for the first of these fields that the row does not have."""
    for name in names:
        if name not in fields:
            raise Bad("missing_field", name, "no such key")


def encodable(text: str, name: str) -> str:
    """The text itself; `Bad` where it holds half a surrogate pair or bytes that were not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Bad("unreadable", name, f"not valid Unicode at character {error.start}") from error
    return text


def text(value: Any, name: str, reason: str) -> str:
    """A text that is not blank, byte for byte as it stands; else `Bad` with this reason."""
    if not isinstance(value, str) or not value.strip():
        raise Bad(reason, name, describe(value))
    return encodable(value, name)


def optional_text(value: Any, name: str) -> str | None:
    """The text, or None where it is absent, blank or of another type."""
    return encodable(value, name) if isinstance(value, str) and value.strip() else None


def rating(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """7, 7.0, '7', ' 7 ', '7.0', full-width digits -> 7.0; `Bad` (invalid_rating) for anything else or out of range."""
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else math.nan
    elif isinstance(value, str):
        plain = unicodedata.normalize("NFKC", value).strip()
        if re.fullmatch(r"[+-]?\d{1,15}(\.\d{1,15})?", plain):
            number = float(plain)
    if not (math.isfinite(number) and low <= number <= high):
        raise Bad("invalid_rating", name, describe(value))
    return number


def messages(value: Any, name: str, reason: str) -> tuple[Message, ...]:
    """A conversation from a list of {role, content}; content as text or as a list of text parts."""
    if not isinstance(value, list | tuple) or not value:
        raise Bad(reason, name, describe(value))
    found = []
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
            raise Bad(reason, name, f"not a message with role and content: {describe(item)}")
        content = item.get("content")
        if isinstance(content, list):
            parts = [
                part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            ]
            if len(parts) < len(content):
                raise Bad(reason, name, f"a message part without text: {describe(content)}")
            content = "".join(parts)
        if not isinstance(content, str):
            raise Bad(reason, name, f"a message without text: {describe(item)}")
        found.append({"role": item["role"], "content": encodable(content, name)})
    if not found[-1]["content"].strip():
        raise Bad(reason, name, "its last message is blank")
    return tuple(found)


def content(value: Any, name: str, reason: str) -> Content:
    """Text or messages, whichever the value is."""
    return text(value, name, reason) if isinstance(value, str) or value is None else messages(value, name, reason)


def ids(value: Any, name: str, reason: str) -> tuple[int, ...]:
    """A list of token ids that is not empty."""
    if not isinstance(value, list | tuple) or not value:
        raise Bad(reason, name, describe(value))
    wrong = next((v for v in value if isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < 2**31), None)
    if wrong is not None or None in value:
        raise Bad(reason, name, f"not a token id: {describe(wrong)}")
    return tuple(value)


def label(value: Any, name: str = "label") -> bool:
    """True or false, also as 1 and 0 or in words; `Bad` (invalid_rating) for anything else."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().casefold() in words:
        return words[value.strip().casefold()]
    raise Bad("invalid_rating", name, describe(value))


def drop(report: Report, row: Row, bad: Bad) -> None:
    """Counts and lists the row under what was wrong with its field."""
    report.drop(row, bad.reason, bad.field, bad.found)
