"""The language of a text by its script: enough to see whether an answer is in the language of the question."""

from care_jax.data.scripts import count_scripts, main_script

# Letters of Persian and Urdu that Arabic does not have.
_PERSIAN = set("پچژگکی")
_ENGLISH = frozenset("the of and to in is are it that for as with was on a an this by or be".split())  # noqa: SIM905


_LANGUAGES = {
    "arabic": "ar", "cjk": "zh", "kana": "ja", "hangul": "ko", "cyrillic": "ru", "greek": "el", "hebrew": "he",
    "devanagari": "hi", "thai": "th", "none": "none",
}  # fmt: skip


def detect_language(text: str) -> str:
    """Returns ar, fa, zh, ja, ko, ru, el, he, hi, th, en, `latin` (any other language) or `none` (no letters).

    fa differs from ar by its letters, en from `latin` by its most frequent words.
    """
    counts = count_scripts(text)
    language = _LANGUAGES.get(main_script(counts), "latin")
    if language == "ar" and sum(char in _PERSIAN for char in text) >= 0.05 * counts["arabic"]:
        return "fa"
    if language == "latin":
        words = text.casefold().split()
        return "en" if sum(word.strip(".,;:!?") in _ENGLISH for word in words) >= 0.08 * len(words) else "latin"
    return language
