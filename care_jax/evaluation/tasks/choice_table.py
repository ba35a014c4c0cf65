"""The rows of tables of multiple-choice questions, by whatever names their columns have."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from care_jax.data.cultures import culture_id
from care_jax.data.rows.row import Row, shorten
from care_jax.data.rows.table import require_fields
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject

LETTERS = "ABCDEFGHIJ"
_OPTION_KEYS = tuple(f"option_{letter.lower()}" for letter in LETTERS)
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "sample_id", "data_idx"),
    "unit": ("question_idx", "unit"),
    "question": ("prompt_question", "question", "query", "input", "problem"),
    "choices": ("choices", "options", "candidates"),
    **{key: (key, f"prompt_{key}", f"Option {letter}", letter) for key, letter in zip(_OPTION_KEYS, LETTERS)},
    "option": ("prompt_option", "option"),
    "answer": ("answer", "Answer Key", "answer_idx", "label", "target", "correct_answer", "gold"),
    "culture": ("culture", "associated_culture"),
    "country": ("country", "region"),
    "language": ("language", "lang"),
    "domain": ("domain", "dimension"),
    "subject": ("subject", "topic", "type"),
    "regional_feature": ("regional_feature",),
    "level": ("level",),
    "category": ("category", "cul_type", "culture_type"),
    "cultural_sensitivity": ("cultural_sensitivity_label", "cultural_sensitivity"),
}
_GROUPS = (
    "culture", "country", "language", "domain", "subject", "regional_feature", "category", "cultural_sensitivity",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question with options. right: index of the right one. kind: what few-shot examples share with the question."""

    id: str
    text: str
    choices: tuple[str, ...]
    right: int
    groups: Mapping[str, str]
    language: str | None
    domain: str
    kind: tuple[str, ...]


def parse_question(row: Row, values: JsonObject) -> ChoiceQuestion | None:
    """Returns the question in a row, or None if its text is blank; raises UserError if options or answer are wrong."""
    require_fields(row, values, "question", "answer")
    choices = _choices(values, row)
    if is_blank(values):
        return None
    return ChoiceQuestion(
        id=row_id(values, row),
        text=str(values["question"]),
        choices=tuple(choices),
        right=_right_index(values["answer"], choices, row),
        groups=row_groups(values),
        language=values.get("language"),
        domain=str(values.get("domain", "")).strip(),
        kind=question_kind(values),
    )


def is_blank(values: JsonObject) -> bool:
    """Returns whether the question has no text."""
    return not str(values["question"] or "").strip()


def question_kind(values: JsonObject) -> tuple[str, ...]:
    """Returns what examples share with a question: its language, and its domain or else its subject."""
    subject = values.get("domain") or values.get("subject")
    return tuple(str(value).strip() for value in (values.get("language"), subject) if value not in (None, ""))


def row_id(values: JsonObject, row: Row) -> str:
    """Returns the id in a row, or else its number."""
    return str(values["id"]) if values.get("id") not in (None, "") else str(row.number)


def row_groups(values: JsonObject) -> dict[str, str]:
    """Returns the groups that a row belongs to, by dimension; a row with a country has a culture too."""
    groups = {key: str(values[key]) for key in _GROUPS if values.get(key) not in (None, "")}
    if "culture" not in groups and "country" in groups:
        groups["culture"] = culture_id(groups["country"])
    return groups


def parse_truth(value: object, row: Row) -> bool:
    """Returns the truth value of an answer: true, false, 1 or 0."""
    word = str(value).strip().casefold()
    if word not in ("true", "false", "1", "0"):
        raise UserError(f"{row.place}, answer: expected true or false, found {value!r}")
    return word in ("true", "1")


def _choices(values: JsonObject, row: Row) -> list[str]:
    choices = values.get("choices")
    if choices is None:
        choices = [values[key] for key in _OPTION_KEYS if values.get(key) not in (None, "")]
    elif isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            choices = [part.strip() for part in choices.split("|")]
    if isinstance(choices, Mapping):
        choices = choices["text"] if "text" in choices else list(choices.values())
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
        raise UserError(
            f"{row.place}: expected 2 to {len(LETTERS)} options, in `choices` or option_a, option_b, ...; "
            f"found {shorten(choices)}"
        )
    return [str(choice) for choice in choices]


def _right_index(value: object, choices: Sequence[str], row: Row) -> int:
    """Returns the index of the right option, named by an index from 0, a letter (also 'Option B') or its own text."""
    text = str(value).strip()
    stripped = [choice.strip() for choice in choices]
    letter = text.removeprefix("Option ").removeprefix("option_").strip(".() ").upper()
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
    elif text in stripped:
        index = stripped.index(text)
    elif len(letter) == 1 and letter in LETTERS:
        index = LETTERS.index(letter)
    else:
        index = int(text) if text.isdigit() else -1
    if not 0 <= index < len(choices):
        raise UserError(
            f"{row.place}, answer: found {value!r}, expected 0 to {len(choices) - 1}, a letter up to "
            f"{LETTERS[len(choices) - 1]}, or an option's text"
        )
    return index
