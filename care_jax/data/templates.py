"""Chat templates: their text, the date in them, and rendering many conversations by few runs of the template.

Jinja takes longer to run a template than the tokenizer takes for its result. So a template runs once for each sequence
of roles, on stand-ins for the contents. What it writes around them is the frame for all conversations with these roles.
The stand-ins hold what a template could change (quotes, angle brackets, line breaks, capitals), so a template that does
more than copy a content has no frame. A content that a template may look into is rendered by the template itself: one
that starts or ends with white space, or holds a string of the template's source ('</think>', for example).
"""

import ast
import datetime
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from care_jax.data.questions import Message
from care_jax.data.rows.row import shorten
from care_jax.errors import UserError

Conversation = list[Message]
Render = Callable[[list[Conversation]], list[str]]

_STAND_IN = "\ue000{}\"\\<a href='Zz'>&\n  .é{{}}\ue001"
_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_MOST_FRAMES = 1024


def template_text(own: str | Mapping[str, str] | None, template: str) -> str:
    """The jinja text of `template`: `model` (the tokenizer's own) or a file.

    Returns an empty text if the tokenizer has none, which is an error only when messages are rendered.
    """
    if template == "model":
        return (own.get("default") if isinstance(own, Mapping) else own) or ""
    try:
        return pathlib.Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat_template: expected model, none or a jinja file, found {template!r}: {error}") from error


def insert_date(template: str, date: str | None) -> tuple[str, dict[str, str]]:
    """The template with this date (YYYY-MM-DD) in place of today's, and the variables that it needs besides."""
    if date is None:
        return template, {}
    try:
        day = datetime.datetime.fromisoformat(date)
    except ValueError as error:
        raise UserError(f"date: expected YYYY-MM-DD, found {date!r}") from error
    # transformers gives a template no function but its own strftime_now, so the date replaces the calls themselves.
    template = re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: f"{call[1]}{day.strftime(call[2])}{call[1]}", template
    )
    # A template that has a date_string of its own (Llama 3.1) needs none, and generation gives it none.
    needed = "date_string" in template and not re.search(r"date_string\s+is\s+(not\s+)?defined", template)
    return template, {"date_string": day.strftime("%d %b %Y")} if needed else {}


def explain_refusals(render: Render) -> Render:
    """Returns the same renderer, with a UserError that shows the conversation which the template refuses."""
    import jinja2  # here, to spare it from commands that render nothing

    failures = (jinja2.TemplateError, TypeError, ValueError, KeyError)

    def render_or_explain(conversations: list[Conversation]) -> list[str]:
        try:
            return render(conversations)
        except failures as error:
            for conversation in conversations:
                try:
                    render([conversation])
                except failures as reason:
                    roles = ", ".join(str(message["role"]) for message in conversation)
                    raise UserError(
                        f"the chat template refuses a conversation of {roles}: {reason}"
                        f" (it begins {shorten(conversation[0]['content'], 60)!r})"
                    ) from reason
            raise UserError(f"the chat template fails: {error}") from error

    return render_or_explain


class Frames:
    """Renders conversations by the frames of one template. render: the template itself."""

    def __init__(self, template: str, render: Render):
        self._render = render
        self._frames: dict[tuple[str, ...], list[str] | None] = {}
        literals = {literal.strip() for literal in _literals(template)} - {""}
        self._special = re.compile("|".join(map(re.escape, sorted(literals)))) if literals else re.compile(r"(?!)")

    def __call__(self, conversations: Sequence[Conversation]) -> list[str]:
        """What the template writes for each conversation."""
        texts: list[str | None] = []
        for turns in conversations:
            frame = self._frame(turns)
            contents = [turn["content"] for turn in turns]
            if frame is None or not all(map(self._is_plain, contents)):
                texts.append(None)
            else:
                parts = [frame[0]]
                for content, after in zip(contents, frame[1:]):
                    parts += (content, after)
                texts.append("".join(parts))
        rest = [turns for turns, text in zip(conversations, texts) if text is None]
        rendered = iter(self._render(rest) if rest else [])
        return [next(rendered) if text is None else text for text in texts]

    def _is_plain(self, content: str) -> bool:
        """Whether every template with a frame copies this content unchanged."""
        return content == content.strip() != "" and self._special.search(content) is None

    def _frame(self, turns: Conversation) -> list[str] | None:
        """What the template writes around the contents of these roles; None if it has no frame."""
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._frames:
            self._frames[roles] = self._make_frame(roles) if len(self._frames) < _MOST_FRAMES else None
        return self._frames[roles]

    def _make_frame(self, roles: tuple[str, ...]) -> list[str] | None:
        stand_ins = [_STAND_IN.replace("{}", str(i), 1) for i in range(len(roles))]
        try:
            text = self._render([[{"role": role, "content": c} for role, c in zip(roles, stand_ins)]])[0]
        except UserError:
            return None  # the template refuses these roles; the error shall show a real conversation
        frame = []
        for stand_in in stand_ins:
            before, separator, text = text.partition(stand_in)
            if not separator:
                return None
            frame.append(before)
        frame.append(text)
        return None if any("\ue000" in part or "\ue001" in part for part in frame) else frame


def _literals(template: str) -> list[str]:
    """The strings in a template's expressions."""
    literals = []
    for block in re.findall(r"\{[{%].*?[%}]\}", template, re.DOTALL):
        for literal in _LITERAL.findall(block):
            try:
                literals.append(ast.literal_eval(literal.replace("\n", "\\n")))
            except (SyntaxError, ValueError):
                literals.append(literal[1:-1])
    return literals
