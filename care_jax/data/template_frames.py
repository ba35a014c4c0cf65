"""Rendering many conversations by one run of the chat template for each sequence of roles.

Jinja takes longer over a template than the tokenizer over its result. A template is therefore run once on stand-ins for
the contents; what it writes around them is the frame for every conversation of these roles. The stand-ins hold what a
template could change (quotes, angle brackets, line breaks, capitals), so a template that does more to a content than
copy it has no frame. Contents that a template may look into (one that starts or ends in white space, or holds a string
that stands in the template's source, '</think>' say) are rendered by the template itself.
"""

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

from care_jax.errors import UserError

_STAND_IN = "\ue000{}\"\\<a href='Zz'>&\n  .é{{}}\ue001"
_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)

Render = Callable[[list[list[Any]]], list[str]]


class Frames:
    """The frames of one template. render: the template itself, on a batch of conversations."""

    def __init__(self, template: str, render: Render):
        self._render = render
        self._frames: dict[tuple[str, ...], list[str] | None] = {}
        literals = {literal.strip() for literal in _literals(template)} - {""}
        self._special = re.compile("|".join(map(re.escape, sorted(literals)))) if literals else re.compile(r"(?!)")

    def __call__(self, conversations: Sequence[list[Any]]) -> list[str]:
        """What the template writes for each conversation."""
        texts: list[str | None] = []
        for turns in conversations:
            frame = self._frame(turns)
            contents = [turn["content"] for turn in turns]
            if frame is None or not all(map(self._ordinary, contents)):
                texts.append(None)
            else:
                parts = [frame[0]]
                for content, after in zip(contents, frame[1:]):
                    parts += (content, after)
                texts.append("".join(parts))
        rest = [turns for turns, text in zip(conversations, texts) if text is None]
        rendered = iter(self._render(rest) if rest else [])
        return [next(rendered) if text is None else text for text in texts]

    def _ordinary(self, content: str) -> bool:
        return content == content.strip() != "" and self._special.search(content) is None

    def _frame(self, turns: list[Any]) -> list[str] | None:
        """What the template writes around the contents of these roles; None where it has no frame."""
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._frames:
            self._frames[roles] = self._make(roles) if len(self._frames) < 1024 else None
        return self._frames[roles]

    def _make(self, roles: tuple[str, ...]) -> list[str] | None:
        stand_ins = [_STAND_IN.replace("{}", str(i), 1) for i in range(len(roles))]
        try:
            text = self._render([[{"role": role, "content": c} for role, c in zip(roles, stand_ins)]])[0]
        except UserError:
            return None  # the template refuses such roles: let it say so of the conversation itself
        frame = []
        for stand_in in stand_ins:
            before, found, text = text.partition(stand_in)
            if not found:
                return None
            frame.append(before)
        frame.append(text)
        return None if any("\ue000" in part or "\ue001" in part for part in frame) else frame


def _literals(template: str) -> list[str]:
    """The strings that stand in a template's expressions."""
    found = []
    for block in re.findall(r"\{[{%].*?[%}]\}", template, re.DOTALL):
        for literal in _LITERAL.findall(block):
            try:
                found.append(ast.literal_eval(literal.replace("\n", "\\n")))
            except (SyntaxError, ValueError):
                found.append(literal[1:-1])
    return found
