"""What a free text says: the option it chooses, the rating it gives."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

# The usual letters of four options in Arabic exams; full-width letters become plain by NFKC.
_ARABIC = {"أ": "A", "ا": "A", "إ": "A", "ب": "B", "ج": "C", "د": "D", "ه": "E", "هـ": "E"}
_MARKED = re.compile(
    r"(?:answer|choice|option|إجابة|الإجابة|الجواب|الخيار|答案|选项|選択肢|答え|正解)[^A-Za-z\n]{0,12}?"
    r"(?:is|are|it'?s|:|هي|هو|是|は|为)?[\s:*(\[{\"'「『]*([A-Z])(?![A-Za-z])",
    re.IGNORECASE,
)
_ARABIC_MARKED = re.compile(
    r"(?:إجابة|الإجابة|الجواب|الخيار)[^\u0620-\u064a]*(?:هي|هو)?[\s:*(\[]*([أابجد])(?![\u0620-\u064a])"
)
_ALONE = re.compile(r"(?<![A-Za-z])([A-Z])(?=[\s.):,\]}\"'*、。]|$)")


def option_letter(text: str, letters: Sequence[str], choices: Sequence[str] = ()) -> str | None:
    """The letter of the option that a text chooses, or None.

    In this order: a text that begins with a letter of its own ('B', '(B)', 'ب', 'Ｂ.'), one behind a word like answer,
    the only free-standing letter, and a text that holds exactly one option's wording.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    first = re.match(r"[\s*(\[{\"'「『]*([A-Za-z])(?![\w'])", plain)
    if first and first[1].upper() in letters and not _is_word(plain, first[1]):
        return first[1].upper()
    arabic = re.match(r"[\s*(\[{\"'«]*(هـ|[أاإبجده])(?![\u0620-\u064a])", plain)
    if arabic and _ARABIC[arabic[1]] in letters:
        return _ARABIC[arabic[1]]
    marked = [found.upper() for found in _MARKED.findall(plain) if found.upper() in letters]
    if marked:
        return marked[-1]
    behind = _ARABIC_MARKED.search(plain)
    if behind:
        return _ARABIC[behind[1]]
    alone = {found for found in _ALONE.findall(plain) if found in letters}
    if len(alone) == 1:
        return alone.pop()
    return by_wording(plain, letters, choices)


def _is_word(text: str, letter: str) -> bool:
    """'A' and 'I' may begin a sentence: 'A dish of rice', but not 'A. Rice' or a lone 'A'."""
    return letter in "AaIi" and re.match(r"[\s*(\[]*[AaIi] +[a-z]", text) is not None


def by_wording(text: str, letters: Sequence[str], choices: Sequence[str]) -> str | None:
    """The letter of the only option whose wording stands in the text; one within another's wording is not meant."""
    folded = " ".join(text.casefold().split())
    wordings = {letter: " ".join(choice.casefold().split()) for letter, choice in zip(letters, choices)}
    found = {letter: wording for letter, wording in wordings.items() if wording and wording in folded}
    outer = [
        letter
        for letter, wording in found.items()
        if not any(wording != other and wording in other for other in found.values())
    ]
    return outer[0] if len(outer) == 1 else None


def last_object(text: str) -> Mapping[str, object] | None:
    """The last {...} of a text that is a JSON object, or None; code fences and a comma before } are forgiven."""
    plain = text.replace("\n", " ").replace("```json", "").replace("`", "")
    plain = re.sub(r",\s*}", "}", plain)
    for found in reversed(re.findall(r"\{[^{}]*\}", plain)):
        try:
            value = json.loads(found)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


def first_capital(text: str) -> str | None:
    """The first of A-Z in a text, as BLEnD's script reads a free answer: 'The answer is B' is 'T'."""
    found = re.search(r"[A-Z]", text)
    return found[0] if found else None


def blend_choice(text: str, choices: Mapping[str, str], *, robust: bool) -> str | None:
    """The option that an answer to a BLEnD question chooses.

    The last {...} with `answer_choice`: its first capital letter where that is an option, else the option of that
    wording; without such an object the first capital letter of the text, and with `robust` `option_letter`.
    """
    value = last_object(text)
    if value is not None and "answer_choice" in value:
        said = str(value["answer_choice"])
        letter = first_capital(said)
        if letter in choices:
            return letter
        same = [key for key, wording in choices.items() if wording == said]
        if robust and not same:
            folded = said.strip().casefold()
            same = [key for key, wording in choices.items() if folded in (wording.casefold(), key.casefold())]
        return same[0] if same else None
    if robust:
        return option_letter(text, list(choices), list(choices.values()))
    return first_capital(text)


_RATING = re.compile(
    r"rating\W{0,6}?(?::|：|is)\s*\**\s*[\[［【]\s*[\[［【]\s*(\d+(?:[.．]\d+)?)\s*(?:/\s*\d+)?\s*[\]］】]\s*[\]］】]",
    re.IGNORECASE,
)


def rating(text: str, low: float = 1.0, high: float = 10.0) -> float | None:
    """The last 'Rating: [[7]]' of a judgement within low..high, or None.

    Bold markers, full-width brackets and digits, and '7/10' inside the brackets are understood.
    """
    found = _RATING.findall(text)
    if not found:
        return None
    value = float(unicodedata.normalize("NFKC", found[-1]))
    return value if low <= value <= high else None
