"""Parsers of answers in words: the option that an answer chooses, the rating that a judgement gives."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

# The usual letters of options in Arabic exams. (NFKC turns full-width letters into plain ones.)
_ARABIC = {"أ": "A", "ا": "A", "إ": "A", "ب": "B", "ج": "C", "د": "D", "ه": "E", "هـ": "E"}
_MARKED = re.compile(
    r"(?:answer|choice|option|إجابة|الإجابة|الجواب|الخيار|答案|选项|選択肢|答え|正解)[^A-Za-z\n]{0,12}?"
    r"(?:is|are|it'?s|:|هي|هو|是|は|为)?[\s:*(\[{\"'「『]*([A-Z])(?![A-Za-z])",
    re.IGNORECASE,
)
_ARABIC_MARKED = re.compile(
    r"(?:إجابة|الإجابة|الجواب|الخيار)[^\u0620-\u064a]*(?:هي|هو)?[\s:*(\[]*([أابجد])(?![\u0620-\u064a])"
)
_SEPARATE = re.compile(r"(?<![A-Za-z])([A-Z])(?=[\s.):,\]}\"'*、。]|$)")


def option_letter(text: str, letters: Sequence[str], choices: Sequence[str] = ()) -> str | None:
    """Returns the letter of the option that a text chooses, or None.

    Tries in this order: a separate letter at the start ('B', '(B)', 'ب', 'Ｂ.'), a letter after a word like answer, the
    only separate letter in the text, and the only option whose wording is in the text.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    first = re.match(r"[\s*(\[{\"'「『]*([A-Za-z])(?![\w'])", plain)
    if first and first[1].upper() in letters and not _is_word(plain, first[1]):
        return first[1].upper()
    arabic = re.match(r"[\s*(\[{\"'«]*(هـ|[أاإبجده])(?![\u0620-\u064a])", plain)
    if arabic and _ARABIC[arabic[1]] in letters:
        return _ARABIC[arabic[1]]
    marked = [letter.upper() for letter in _MARKED.findall(plain) if letter.upper() in letters]
    if marked:
        return marked[-1]
    arabic_marked = _ARABIC_MARKED.search(plain)
    if arabic_marked:
        return _ARABIC[arabic_marked[1]]
    separate = {letter for letter in _SEPARATE.findall(plain) if letter in letters}
    if len(separate) == 1:
        return separate.pop()
    return by_wording(plain, letters, choices)


def _is_word(text: str, letter: str) -> bool:
    """Returns whether the letter is a word: 'A' and 'I' may begin a sentence, as in 'A dish', but not in 'A. Rice'."""
    return letter in "AaIi" and re.match(r"[\s*(\[]*[AaIi] +[a-z]", text) is not None


def by_wording(text: str, letters: Sequence[str], choices: Sequence[str]) -> str | None:
    """Returns the letter of the only option whose wording is in the text, or None.

    An option does not count if its wording is a part of another one that is in the text.
    """
    folded = " ".join(text.casefold().split())
    wordings = {letter: " ".join(choice.casefold().split()) for letter, choice in zip(letters, choices)}
    present = {letter: wording for letter, wording in wordings.items() if wording and wording in folded}
    longest = [
        letter
        for letter, wording in present.items()
        if not any(wording != other and wording in other for other in present.values())
    ]
    return longest[0] if len(longest) == 1 else None


def last_object(text: str) -> Mapping[str, object] | None:
    """Returns the last {...} in a text that is a JSON object, or None. Code fences and a comma before } are allowed."""
    plain = text.replace("\n", " ").replace("```json", "").replace("`", "")
    plain = re.sub(r",\s*}", "}", plain)
    for candidate in reversed(re.findall(r"\{[^{}]*\}", plain)):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


def first_capital(text: str) -> str | None:
    """Returns the first of A-Z in a text, as BLEnD's script reads an answer in words: 'The answer is B' gives 'T'."""
    capital = re.search(r"[A-Z]", text)
    return capital[0] if capital else None


def blend_choice(text: str, choices: Mapping[str, str], *, robust: bool) -> str | None:
    """Returns the letter of the option that an answer to a BLEnD question chooses.

    If the last JSON object in the text has an `answer_choice`: its first capital letter if that is an option, else the
    option with that wording, or None. Otherwise the first capital letter of the text; with `robust`, `option_letter`.
    """
    value = last_object(text)
    if value is not None and "answer_choice" in value:
        choice = str(value["answer_choice"])
        letter = first_capital(choice)
        if letter in choices:
            return letter
        same = [key for key, wording in choices.items() if wording == choice]
        if robust and not same:
            folded = choice.strip().casefold()
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
    """Returns the last 'Rating: [[7]]' of a judgement, or None if there is none or it is not within low..high.

    Bold markers, full-width brackets and digits, and '7/10' in the brackets are accepted.
    """
    ratings = _RATING.findall(text)
    if not ratings:
        return None
    value = float(unicodedata.normalize("NFKC", ratings[-1]))
    return value if low <= value <= high else None
