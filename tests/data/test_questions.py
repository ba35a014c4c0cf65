"""Question keys and kinds of content."""

from care_jax.data.questions import is_ids, is_messages, plain_text, question_key


def test_key_ignores_width_case_and_white_space_but_not_the_culture():
    assert question_key("ＡＢＣ　def？", "chinese") == question_key(" abc \n DEF? ", "chinese")
    assert question_key("abc", "chinese") != question_key("abc", "arab")
    assert question_key(({"role": "user", "content": "abc"},), "arab") == question_key("abc", "arab")


def test_a_conversation_differs_from_its_last_turn():
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    assert question_key(turns, None) != question_key("c", None)
    assert plain_text(turns) == "user: a\nassistant: b\nuser: c"


def test_kinds_of_content():
    assert is_ids((1, 2))
    assert is_messages(({"role": "user", "content": "a"},))
    assert not any((is_ids("a"), is_messages("a"), is_ids(()), is_messages((1,))))
