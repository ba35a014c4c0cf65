"""The language of a text, by its script."""

import pytest

from care_jax.evaluation.language import detect_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("なぜ日本では靴を脱ぐのですか", "ja"),
        ("東京タワー", "ja"),
        ("中国人为什么不喜欢数字四", "zh"),
        ("ما هو الطعام الشعبي", "ar"),
        ("غذای محلی چیست و کجا می‌پزند", "fa"),
        ("It is the food of the north.", "en"),
        ("Das ist eine Speise", "latin"),
        ("한국어", "ko"),
        ("123 ?!", "none"),
    ],
)
def test_language_by_script(text, language):
    assert detect_language(text) == language
