"""Loading a tokenizer, and rendering and tokenizing with an exact boundary between prompt and completion.

    tokenizer = load_tokenizer("folder or hub id")
    prompt_ids, completion_ids = encode(tokenizer, prompt, completion, template="model")

The prompt's ids are those that generation starts from. Prompt and completion are rendered as one text, tokenized once
and split after the prompt's ids. If these are no prefix of the result (a merge across the boundary), the completion is
encoded by itself, and this is counted. A completion is everything that the template renders after the generation
prompt: the turn end and what follows it are included.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from care_jax.data.questions import Content, Message, is_ids, is_messages, plain_text
from care_jax.data.rows.files import SAMPLE
from care_jax.data.rows.row import shorten
from care_jax.data.templates import Conversation, Frames, explain_refusals, insert_date, template_text
from care_jax.errors import UserError
from care_jax.hub import is_hub_id

_BATCH = 2048  # texts per call of the tokenizer: bounds memory, and keeps every core busy


@runtime_checkable
class Tokenizer(Protocol):
    """What care_jax uses of a Hugging Face tokenizer (`transformers.PreTrainedTokenizerBase`)."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...  # tokenizers.AddedToken

    def __hash__(self) -> int: ...

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]: ...

    def apply_chat_template(self, conversation: list[list[Message]], **options: object) -> list[str]: ...

    def decode(self, token_ids: Sequence[int], **options: bool) -> str: ...

    def get_vocab(self) -> Mapping[str, int]: ...

    def save_pretrained(self, folder: str | os.PathLike[str]) -> object: ...

    if TYPE_CHECKING:
        # transformers sets these per object or finds them in __getattr__, so a check at run time cannot see them.
        chat_template: str | Mapping[str, str] | None
        bos_token: str | None
        eos_token: str | None
        bos_token_id: int | None
        eos_token_id: int | None


class Encoded(NamedTuple):
    """One prompt with its completions, as token ids. boundary_merges: completions that were encoded by themselves."""

    prompt_ids: list[int]
    completions: list[list[int]]
    boundary_merges: int = 0


PromptWithCompletions = tuple[Content, Sequence[Content]]


def load_tokenizer(path: str | os.PathLike[str], revision: str | None = None) -> Tokenizer:
    """The Hugging Face tokenizer of a folder, a hub id, or the packaged `sample`. Never runs code of a repository.

    A folder that has only a SentencePiece tokenizer.model is enough. Raises UserError if there is no tokenizer.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # hides the advice to install PyTorch, which is not used
    import transformers

    folder = SAMPLE / "model" if str(path) == "sample" else pathlib.Path(path).expanduser()
    if folder.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{path}: no tokenizer in this folder (tokenizer.json or tokenizer.model)")
    elif not is_hub_id(path):
        raise UserError(f"no such folder: {path}")
    try:
        # Any: transformers declares results as unions over every argument, wider than what these calls return.
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            str(folder if folder.is_dir() else path), revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # transformers raises many kinds for a broken or missing file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: the tokenizer cannot be loaded: {reason}") from error
    return tokenizer


# --- encoding --------------------------------------------------------------------------------------------------------


def encode(
    tokenizer: Tokenizer, prompt: Content, completion: Content, template: str = "model", date: str | None = None
) -> tuple[list[int], list[int]]:
    """(prompt_ids, completion_ids) of one prompt and one completion: messages, text, or token ids (kept as they are).

    template: `model` (the tokenizer's own), `none`, or the path of a jinja file. Text has no template: the tokenizer's
    own BOS comes once before it, EOS once after it. date: today's date for a template that asks for it, as YYYY-MM-DD.
    """
    (encoded,) = encode_many(tokenizer, [(prompt, [completion])], template, date)
    return encoded.prompt_ids, encoded.completions[0]


def encode_prompt(tokenizer: Tokenizer, prompt: Content, template: str = "model", date: str | None = None) -> list[int]:
    """The ids that generation starts from."""
    return encode_many(tokenizer, [(prompt, [])], template, date)[0].prompt_ids


def encode_many(
    tokenizer: Tokenizer, items: Sequence[PromptWithCompletions], template: str = "model", date: str | None = None
) -> list[Encoded]:
    """`encode` for many prompts, each with its completions. The tokenizer gets large batches, which is fastest."""
    style = _Style.make(tokenizer, template, date)
    encoded: list[Encoded] = []
    for start in range(0, len(items), _BATCH // 4):
        encoded += _encode_batch(style, items[start : start + _BATCH // 4])
    return encoded


def _encode_batch(style: "_Style", items: Sequence[PromptWithCompletions]) -> list[Encoded]:
    """Renders all items, tokenizes all their texts in one call, and splits the results."""
    rendered = _render_items(style, [item for item in items if not is_ids(item[0])])
    ids = iter(_tokenize(style.tokenizer, [text for item in rendered for text in item.texts()]))
    remaining = iter(rendered)
    return [
        Encoded(list(prompt), [list(completion) for completion in completions if is_ids(completion)])
        if is_ids(prompt)
        else _split(style, next(remaining), ids)
        for prompt, completions in items
    ]


def _split(style: "_Style", item: "_Rendered", ids: Iterator[list[int]]) -> Encoded:
    """Takes the ids of the item's texts and separates completions from the prompt."""
    prompt_ids, tail = _with_start(style, next(ids)), next(ids)
    independent = prompt_ids[-len(tail) :] == tail  # else this tokenizer merges across its special tokens
    if item.cut == 0 or not independent:
        tail = prompt_ids
    completions, merges = [], 0
    for text in item.completed:
        completed = next(ids)
        if item.cut and not independent:
            completed = _tokenize(style.tokenizer, [text])[0]
        if tail is prompt_ids:
            completed = _with_start(style, completed)
        if completed[: len(tail)] == tail:
            completion = completed[len(tail) :]
        else:
            merges += 1
            completion_text = _completion_text(item.prompt[item.cut :], text[item.cut :], item.templated)
            completion = _tokenize_alone(style.tokenizer, completion_text)
        eos = style.tokenizer.eos_token_id
        if not item.templated and eos is not None and completion[-1:] != [eos]:
            completion = [*completion, eos]
        completions.append(completion)
    return Encoded(prompt_ids, completions, merges)


def _tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    ids: list[list[int]] = []
    for start in range(0, len(texts), _BATCH):
        # The fast form computes no offsets, which are not needed.
        batch = backend.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)
        ids += [encoding.ids for encoding in batch]
    return ids


def _tokenize_alone(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a completion by itself: after a sentinel, so that the tokenizer adds no space as at a text's start."""
    special = [token for token in (tokenizer.eos_token, tokenizer.bos_token) if token]
    for sentinel in ("\n", ".", "0", *special):
        before, both = _tokenize(tokenizer, [sentinel, sentinel + text])
        if both[: len(before)] == before:
            return both[len(before) :]
    raise UserError(f"the tokenizer cannot encode a completion by itself: {shorten(text, 60)!r}")


def _start_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text: its BOS, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    return tuple(ids[:at])


def _with_start(style: "_Style", ids: list[int]) -> list[int]:
    """The ids with exactly one BOS, if the tokenizer puts one before a text, whether or not the text has it already."""
    start, bos = style.start, style.tokenizer.bos_token_id
    if not start:
        return ids
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    if tuple(ids[: len(start)]) == start or (bos is not None and ids[:1] == [bos]):
        return ids
    return [*start, *ids]


# --- rendering -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Style:
    """How a tokenizer's prompts and completions are written.

    template: jinja text; None for template `none`. start: the ids that the tokenizer puts before a text. frames: the
    renderers without and with the generation prompt. special: matches tokens across which the tokenizer never merges.
    """

    tokenizer: Tokenizer
    template: str | None
    start: tuple[int, ...]
    frames: tuple[Frames, Frames]
    special: re.Pattern[str]

    @classmethod
    def make(cls, tokenizer: Tokenizer, template: str, date: str | None) -> "_Style":
        text = None if template == "none" else template_text(getattr(tokenizer, "chat_template", None), template)
        frames, special = _renderers(tokenizer, text or "", date)
        return cls(tokenizer, text, _start_ids(tokenizer), frames, special)


@functools.lru_cache(maxsize=8)
def _renderers(tokenizer: Tokenizer, template: str, date: str | None) -> tuple[tuple[Frames, Frames], re.Pattern[str]]:
    """The frames and the pattern of special tokens. Cached, since they take milliseconds: longer than one `encode`."""
    template, variables = insert_date(template, date)

    def frames(generation: bool) -> Frames:
        def render(conversations: list[Conversation]) -> list[str]:
            return tokenizer.apply_chat_template(
                conversations, chat_template=template, tokenize=False, add_generation_prompt=generation, **variables
            )

        return Frames(template, explain_refusals(render))

    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
    return (frames(False), frames(True)), pattern


def template_and_variables(tokenizer: Tokenizer, template: str, date: str | None) -> tuple[str, dict[str, str]]:
    """All that decides how messages are rendered: the text of the template, and its variables besides the messages."""
    return (
        ("", {})
        if template == "none"
        else insert_date(template_text(getattr(tokenizer, "chat_template", None), template), date)
    )


@dataclass(frozen=True, slots=True)
class _Rendered:
    """The texts of a prompt and its completions.

    completed: the prompt with each completion, as one text. cut: where the last special token of the prompt begins, if
    each text has the prompt before it; from there a text is tokenized independently of what is before, so the long
    beginning of a prompt is tokenized once and not once per completion. 0 if there is no such place.
    """

    prompt: str
    completed: list[str]
    cut: int
    templated: bool

    def texts(self) -> list[str]:
        """What to tokenize: the prompt, its part from the cut, and each completed text from the cut."""
        return [self.prompt, self.prompt[self.cut :], *(text[self.cut :] for text in self.completed)]


def _render_items(style: _Style, items: Sequence[PromptWithCompletions]) -> list[_Rendered]:
    """Renders prompts with their completions; all messages go through the template in one call."""
    templated = [item for item in items if _uses_template(style, *item)]
    prompts = [_messages(prompt, "user") for prompt, _ in templated]
    conversations = [
        turns + _messages(completion, "assistant")
        for turns, (_, completions) in zip(prompts, templated)
        for completion in completions
    ]
    prompt_texts = iter(_render(style, prompts, generation=True))
    conversation_texts = iter(_render(style, conversations, generation=False))
    rendered = []
    for prompt, completions in items:
        if _uses_template(style, prompt, completions):
            text = next(prompt_texts)
            completed = [next(conversation_texts) for _ in completions]
            cut = _last_special(style, text) if all(full.startswith(text) for full in completed) else 0
            rendered.append(_Rendered(text, completed, cut, True))
        else:
            text = _text_of(prompt)
            rendered.append(_Rendered(text, [text + _text_of(completion) for completion in completions], 0, False))
    return rendered


def _render(style: _Style, conversations: list[Conversation], generation: bool) -> list[str]:
    """The conversations as the template writes them, with the generation prompt at the end or without."""
    if not conversations:
        return []
    if not style.template:
        raise UserError(
            "the tokenizer has no chat template, and the data are messages: set chat_template to a jinja file, or none"
        )
    return style.frames[generation](conversations)


def _uses_template(style: _Style, prompt: Content, completions: Sequence[Content]) -> bool:
    """Whether a template renders this: messages, unless the template is `none`."""
    return style.template is not None and (is_messages(prompt) or any(is_messages(c) for c in completions))


def _messages(content: Content, role: str) -> list[Message]:
    return list(content) if is_messages(content) else [{"role": role, "content": _text_of(content)}]


def _text_of(content: Content) -> str:
    """Content without a template: text as it is, messages separated by blank lines."""
    if is_messages(content):
        return "\n\n".join(message["content"] for message in content)
    return content if isinstance(content, str) else plain_text(content)


def _last_special(style: _Style, prompt: str) -> int:
    """Where the last special token of a rendered prompt begins; 0 if it has none."""
    return max((match.start() for match in style.special.finditer(prompt)), default=0)


def _completion_text(prompt: str, completed: str, templated: bool) -> str:
    """The text of the completion: what follows the prompt, or what follows the beginning that both have in common."""
    if completed.startswith(prompt):
        return completed[len(prompt) :]
    # The generation prompt may hold more than the turn of an answer (an opened <think>); the difference is the answer.
    shared = next((i for i, (a, b) in enumerate(zip(prompt, completed)) if a != b), min(len(prompt), len(completed)))
    if templated and "\n" in prompt[shared:].strip("\n") and len(prompt) - shared > 64:
        raise UserError(
            "the chat template writes the prompt differently when an answer follows:"
            f" {shorten(prompt[shared:], 60)!r} against {shorten(completed[shared:], 60)!r}"
        )
    return completed[shared:]
