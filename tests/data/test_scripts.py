"""Which script a text is written in."""

import pytest

from care_jax.data.scripts import count_scripts, main_script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello 你", "latin"),
        ("café ａｂ", "latin"),
        ("你好 a", "cjk"),
        ("日本語は難しい", "kana"),
        ("ﾃﾞｰﾀ", "kana"),
        ("QuizKnockです。", "kana"),
        ("abcdefghijk い", "latin"),
        ("日本語難漢字漢字漢字漢字漢字漢字漢字の", "kana"),
        ("مرحبا", "arabic"),
        ("안녕", "hangul"),
        ("привет", "cyrillic"),
        ("ქართული", "other"),
        ("1!", "none"),
    ],
)
def test_the_script_of_most_letters(text, expected):
    assert main_script(count_scripts(text)) == expected
