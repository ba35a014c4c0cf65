"""The script that a text is written in: latin, arabic, cjk, kana, hangul, cyrillic, greek, hebrew, devanagari, thai."""

import unicodedata
from collections import Counter

_RANGES = {
    "latin": ((0, 0x24F),),
    "cjk": ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2FA1F), (0xF900, 0xFAFF)),
    "kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "hangul": ((0xAC00, 0xD7A3), (0x1100, 0x11FF)),
}
_BY_NAME = ("CYRILLIC", "GREEK", "HEBREW", "DEVANAGARI", "THAI", "LATIN")


def count_scripts(text: str) -> Counter[str]:
    """Returns how many letters of the text are in which script; `other` for scripts without a name here."""
    return Counter(map(_letter_script, filter(str.isalpha, text)))


def main_script(counts: Counter[str]) -> str:
    """Returns the script of most letters, or `none` without letters.

    Japanese mixes kana with Chinese characters and Latin names. The script is kana if 10% of the letters are kana, or
    if 5% are and kana and cjk together are 30%.
    """
    if not counts:
        return "none"
    total = counts.total()
    japanese = counts["kana"] + counts["cjk"] >= 0.3 * total
    if counts["kana"] >= (0.05 if japanese else 0.1) * total:
        return "kana"
    return counts.most_common(1)[0][0]


def _letter_script(letter: str) -> str:
    code = ord(letter)
    for script, ranges in _RANGES.items():
        if any(first <= code <= last for first, last in ranges):
            return script
    name = unicodedata.name(letter, "")
    return next((script.lower() for script in _BY_NAME if script in name.split()), "other")
