"""A template runs once per sequence of roles, unless a content could change what it writes."""

import pytest

from care_jax.data.templates import Frames, explain_refusals, insert_date, template_text
from care_jax.errors import UserError

TEMPLATE = "{% for m in messages %}{{ m.content }}{% if '</think>' in m.content %}!{% endif %}{% endfor %}"


class Render:
    """Stands in for a tokenizer's template; remembers how many conversations it rendered."""

    def __init__(self):
        self.count = 0

    def __call__(self, conversations):
        self.count += len(conversations)
        if any(turn["role"] == "tool" for turns in conversations for turn in turns):
            raise ValueError("no tools")
        mark = "</think>"
        return ["".join(f"{m['role']}: {m['content']}{'!' * (mark in m['content'])}" for m in c) for c in conversations]


def turns(*contents):
    return [{"role": role, "content": content} for role, content in zip(("user", "assistant"), contents)]


def test_a_frame_serves_all_conversations_of_the_same_roles():
    render = Render()
    frames = Frames(TEMPLATE, render)
    assert frames([turns("a"), turns("b")]) == ["user: a", "user: b"]
    assert render.count == 1
    assert frames([turns("c"), turns("a", "b")]) == ["user: c", "user: aassistant: b"]
    assert render.count == 2


def test_a_content_that_the_template_looks_into_is_rendered_by_it():
    render = Render()
    frames = Frames(TEMPLATE, render)
    assert frames([turns("a"), turns("x</think>y"), turns(" b")]) == ["user: a", "user: x</think>y!", "user:  b"]
    assert render.count == 3  # the frame, and two contents that are not plain


def test_a_refused_conversation_is_shown():
    render = explain_refusals(Render())
    tool = [{"role": "tool", "content": "the answer is 4"}]
    with pytest.raises(UserError, match=r"refuses a conversation of tool: no tools \(it begins 'the answer is 4'\)"):
        Frames(TEMPLATE, render)([turns("a"), tool])


def test_the_text_of_a_template(tmp_path):
    assert template_text({"default": "a", "tools": "b"}, "model") == "a"
    assert template_text(None, "model") == ""
    (tmp_path / "t.jinja").write_text("file")
    assert template_text("a", str(tmp_path / "t.jinja")) == "file"
    with pytest.raises(UserError, match="expected model, none or a jinja file, found 'absent'"):
        template_text("a", "absent")


def test_the_date_replaces_calls_and_fills_variables():
    assert insert_date("{{ strftime_now('%d %b') }}", "2024-05-06") == ("{{ '06 May' }}", {})
    assert insert_date("{{ date_string }}", "2024-05-06") == ("{{ date_string }}", {"date_string": "06 May 2024"})
    assert insert_date("{{ date_string }}", None) == ("{{ date_string }}", {})
    with pytest.raises(UserError, match="expected YYYY-MM-DD, found 'today'"):
        insert_date("", "today")
