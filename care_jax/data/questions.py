"""Questions with rated responses: what every reader returns and every view of the losses is made from."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

Message = Mapping[str, str]  # {"role", "content"}


@dataclass(frozen=True, slots=True)
class Stored:
    """Token ids in a token cache (`readers.token_cache`): `length` ids of a record, from `start` on.

    identity: hash of the content that they were made from. words: the text of a prompt that is compared with other
    questions. given_as_ids: the content was ids, which no template rendered. merges: boundary merges of a prompt's
    completions.
    """

    cache: Any
    record: int
    start: int
    length: int
    identity: int = 0
    words: str = ""
    given_as_ids: bool = False
    merges: int = 0

    def __len__(self) -> int:
        return self.length


Content = str | tuple[Message, ...] | tuple[int, ...] | Stored  # text, messages, token ids, ids in a cache


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a question.

    content: text, messages (usually one, of the assistant) or token ids; never changed on the way to the model.
    rating: larger is better; 1-10 in CARE, 1 and 0 for chosen and rejected; None if not rated.
    source: a model or a human. row_number: its row's number over all files of the input, from 0 (`Row.number`).
    field: the field that it came from: response, answer, chosen or rejected.
    desirable: the label of unpaired data, else None.
    """

    content: Content
    rating: float | None
    source: str
    row_number: int
    field: str = "response"
    desirable: bool | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its responses (a group).

    key: `question_key` of the prompt in its own language; decides split, fraction and leakage. reference: the reference
    answer. file: the file of its first row. translated: the English wording, if the data have one.
    """

    prompt: Content
    responses: tuple[Response, ...]
    key: str
    culture: str | None = None
    relation: str | None = None
    category: str | None = None
    language: str | None = None
    reference: str | None = None
    file: str = ""
    translated: str | None = None


def is_ids(content: Stored | Sequence[object]) -> TypeGuard[Sequence[int]]:
    """Returns whether this content is token ids, not text or messages."""
    if isinstance(content, Stored):
        return content.given_as_ids
    return not isinstance(content, str) and len(content) > 0 and not isinstance(content[0], (dict, Mapping))


def is_messages(content: Stored | Sequence[object]) -> TypeGuard[Sequence[Message]]:
    """Returns whether this content is messages, not text or token ids."""
    return not isinstance(content, str | Stored) and len(content) > 0 and isinstance(content[0], (dict, Mapping))


def plain_text(content: Content) -> str:
    """Returns a content as text: the text of a single message, 'role: text' lines of several, ids as numbers."""
    if isinstance(content, str):
        return content
    if isinstance(content, Stored):
        return content.words
    if not is_messages(content):
        return " ".join(map(str, content))
    return content[0]["content"] if len(content) == 1 else "\n".join(f"{m['role']}: {m['content']}" for m in content)


def question_key(prompt: Content, culture: str | None) -> str:
    """Returns the identity of a question: its culture (or nothing), a tab, and its normalised prompt."""
    return f"{culture or ''}\t{normalise(plain_text(prompt))}"


def user_turn(text: str) -> tuple[Message, ...]:
    """Returns a question as a conversation of one user message."""
    return ({"role": "user", "content": text},)


def assistant_turn(text: str) -> tuple[Message, ...]:
    """Returns a response as one assistant message."""
    return ({"role": "assistant", "content": text},)


def normalise(text: str) -> str:
    """Returns text for comparisons (not for a model): NFKC, casefolded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
