"""In which language a text is written, by its script alone: enough to see whether an answer came in the question's."""

import unicodedata
from collections import Counter

# Letters that Persian or Urdu have and Arabic has not.
_PERSIAN = set("پچژگکی")
_ENGLISH = frozenset("the of and to in is are it that for as with was on a an this by or be".split())  # noqa: SIM905


def detect(text: str) -> str:
    """ar, fa, zh, ja, ko, ru, el, he, hi, th, en, `latin` (another language of that script) or `none`.

    A text with kana is Japanese, though most of its letters be Chinese characters; fa is told from ar by its letters.
    """
    scripts: Counter[str] = Counter()
    for char in text:
        if char.isalpha():
            scripts[_script(char)] += 1
    if not scripts:
        return "none"
    total = sum(scripts.values())
    if scripts["ja"] >= 0.05 * total and scripts["ja"] + scripts["zh"] >= 0.3 * total:
        return "ja"
    name = scripts.most_common(1)[0][0]
    if name == "ar" and sum(char in _PERSIAN for char in text) >= 0.05 * scripts["ar"]:
        return "fa"
    if name == "latin":
        words = text.casefold().split()
        return "en" if sum(word.strip(".,;:!?") in _ENGLISH for word in words) >= 0.08 * len(words) else "latin"
    return name


def _script(char: str) -> str:
    code = ord(char)
    if code < 0x250:
        return "latin"
    if 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2FA1F or 0xF900 <= code <= 0xFAFF:
        return "zh"
    if 0x3040 <= code <= 0x30FF or 0x31F0 <= code <= 0x31FF or 0xFF66 <= code <= 0xFF9D:
        return "ja"
    if 0x600 <= code <= 0x6FF or 0x750 <= code <= 0x77F or 0xFB50 <= code <= 0xFDFF or 0xFE70 <= code <= 0xFEFF:
        return "ar"
    if 0xAC00 <= code <= 0xD7A3 or 0x1100 <= code <= 0x11FF:
        return "ko"
    name = unicodedata.name(char, "").split(" ")[0]
    return {"CYRILLIC": "ru", "GREEK": "el", "HEBREW": "he", "DEVANAGARI": "hi", "THAI": "th"}.get(name, "latin")
