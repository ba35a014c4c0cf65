"""Rendering and tokenizing: prompt and completion ids with an exact boundary.

    tokenizer = load_tokenizer("folder or hub id")
    prompt_ids, completion_ids = encode(tokenizer, prompt, completion, template="model")

The prompt's ids are those that generation starts from. The rendered whole is tokenized once and split behind them;
where they are no prefix of it (a merge across the boundary), the completion is encoded by itself, and this is counted.
A completion is everything the template renders after the generation prompt, turn end and what follows it included.
"""

import datetime
import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from care_jax.data.questions import Content, Message, is_ids, is_messages, plain_text
from care_jax.data.rows.files import SAMPLE
from care_jax.data.rows.row import shorten
from care_jax.data.template_frames import Frames
from care_jax.errors import UserError
from care_jax.hub import is_hub_id

_BATCH = 2048  # texts in one call of the tokenizer; bounds memory, large enough to keep every core busy


@runtime_checkable
class AddedToken(Protocol):
    """A token that was added to a vocabulary, as `tokenizers.AddedToken`."""

    content: str
    special: bool


@runtime_checkable
class Tokenizer(Protocol):
    """What care_jax uses of a Hugging Face tokenizer (`transformers.PreTrainedTokenizerBase`)."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]: ...

    def __hash__(self) -> int: ...

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]: ...

    def apply_chat_template(
        self,
        conversation: list[list[Message]],
        *,
        chat_template: str,
        tokenize: bool,
        add_generation_prompt: bool,
        **variables: object,
    ) -> list[str]: ...

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str: ...

    def get_vocab(self) -> Mapping[str, int]: ...

    def save_pretrained(self, folder: str | os.PathLike[str]) -> object: ...

    if TYPE_CHECKING:
        # transformers sets these per object or finds them in __getattr__: no part of the check at run time.
        chat_template: str | Mapping[str, str] | None
        bos_token: str | None
        eos_token: str | None
        bos_token_id: int | None
        eos_token_id: int | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt with its completions, as token ids. boundary_merges: completions that were encoded by themselves."""

    prompt_ids: list[int]
    completions: list[list[int]]
    boundary_merges: int = 0


def load_tokenizer(path: str | os.PathLike[str], revision: str | None = None) -> Tokenizer:
    """The Hugging Face tokenizer of a folder, a hub id, or the packaged `sample`; never runs code of a repository.

    A folder with a SentencePiece tokenizer.model alone will do. `UserError` where there is none.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no word about PyTorch, which is not used here
    import transformers

    place = SAMPLE / "model" if str(path) == "sample" else pathlib.Path(path).expanduser()
    if place.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
        if not any((place / name).is_file() for name in names):
            raise UserError(f"{path}: no tokenizer in this folder (tokenizer.json or tokenizer.model)")
    elif not is_hub_id(path):
        raise UserError(f"no such folder: {path}")
    try:
        # Any: transformers declares results as unions over every argument, wider than what these calls return.
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            str(place if place.is_dir() else path), revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # every kind of broken or missing file ends here, and all mean: no tokenizer
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: the tokenizer cannot be loaded: {reason}") from error
    return tokenizer


def encode(
    tokenizer: Tokenizer, prompt: Content, completion: Content, template: str = "model", date: str | None = None
) -> tuple[list[int], list[int]]:
    """(prompt_ids, completion_ids) of one prompt and one completion: message lists, text, or token ids (kept as is).

    template: `model` (the tokenizer's own), `none`, or a path to a jinja file; text is always rendered with none: the
    tokenizer's own BOS once in front, EOS once behind. date: for a template that asks for today's, as YYYY-MM-DD.
    """
    encoded = encode_question(tokenizer, prompt, [completion], template, date)
    return encoded.prompt_ids, encoded.completions[0]


def encode_question(
    tokenizer: Tokenizer,
    prompt: Content,
    completions: Sequence[Content],
    template: str = "model",
    date: str | None = None,
) -> Encoded:
    """The same for one prompt with several completions."""
    return encode_many(tokenizer, [(prompt, completions)], template, date)[0]


def encode_prompt(tokenizer: Tokenizer, prompt: Content, template: str = "model", date: str | None = None) -> list[int]:
    """The ids that generation starts from."""
    return encode_question(tokenizer, prompt, [], template, date).prompt_ids


def encode_many(
    tokenizer: Tokenizer,
    items: Sequence[tuple[Content, Sequence[Content]]],
    template: str = "model",
    date: str | None = None,
) -> list[Encoded]:
    """The same for many prompts, each with its completions, in the tokenizer's own batches: the fast way."""
    style = _Style.make(tokenizer, template, date)
    encoded: list[Encoded] = []
    for start in range(0, len(items), _BATCH // 4):
        encoded += _encode(style, items[start : start + _BATCH // 4])
    return encoded


# --- rendering -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Style:
    """How to render.

    template: jinja text, or None for none. start: the ids the tokenizer itself puts in front. frames: the renderers
    without and with the generation prompt. special: finds the tokens that the tokenizer never looks across.
    """

    tokenizer: Tokenizer
    template: str | None
    start: tuple[int, ...]
    frames: tuple[Frames, Frames]
    special: re.Pattern[str]

    @classmethod
    def make(cls, tokenizer: Tokenizer, template: str, date: str | None) -> "_Style":
        text = None if template == "none" else _template_text(tokenizer, template)
        frames, special = _machinery(tokenizer, text or "", date)
        return cls(tokenizer, text, _start(tokenizer), frames, special)


@functools.lru_cache(maxsize=8)
def _machinery(tokenizer: Tokenizer, template: str, date: str | None) -> tuple[tuple[Frames, Frames], re.Pattern[str]]:
    """What costs milliseconds to make, so that `encode` of one example is no slower than it must be."""
    template, options = _dated(template, date)
    without, with_prompt = (
        Frames(template, functools.partial(_apply, tokenizer, template, options, generation))
        for generation in (False, True)
    )
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
    return (without, with_prompt), pattern


def rendering(tokenizer: Tokenizer, template: str, date: str | None) -> tuple[str, dict[str, Any]]:
    """(template, what it is handed besides messages) as they render: two that are equal write the same."""
    return ("", {}) if template == "none" else _dated(_template_text(tokenizer, template), date)


def _template_text(tokenizer: Tokenizer, template: str) -> str:
    if template == "model":
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, Mapping):
            own = own.get("default")
        # An empty text stands for none: only messages need one, and then it is an error that says what to do.
        return own or ""
    place = pathlib.Path(template).expanduser()
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat_template: expected model, none or a jinja file, found {template!r}: {error}") from error


def _dated(template: str, date: str | None) -> tuple[str, dict[str, Any]]:
    """The template with the given date wherever it asks for today's, and what else to hand it."""
    if date is None:
        return template, {}
    try:
        day = datetime.datetime.fromisoformat(date)
    except ValueError as error:
        raise UserError(f"date: expected YYYY-MM-DD, found {date!r}") from error
    # transformers hands a template no function but its own strftime_now, so the calls themselves become the date.
    template = re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: f"{call[1]}{day.strftime(call[2])}{call[1]}", template
    )
    # A template with a date_string of its own to fall back on (Llama 3.1) asks for none, and generation gives it none.
    asks = "date_string" in template and not re.search(r"date_string\s+is\s+(not\s+)?defined", template)
    return template, {"date_string": day.strftime("%d %b %Y")} if asks else {}


def _start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer's own rule puts before a text: its BOS, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ruled = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(ruled)) if ruled[i : i + len(plain)] == plain), 0)
    return tuple(ruled[:at])


def _render(style: _Style, conversations: list[list[Any]], generation: bool) -> list[str]:
    """The conversations as the template writes them, with the generation prompt at the end or without."""
    if not style.template:
        raise UserError(
            "the tokenizer has no chat template, and the data are messages: give chat_template a jinja file, or none"
        )
    return style.frames[generation](conversations)


def _apply(
    tokenizer: Tokenizer, template: str, options: Mapping[str, Any], generation: bool, conversations: list[list[Any]]
) -> list[str]:
    """The template itself, on a batch; `UserError` names the conversation that it refuses."""
    import jinja2

    def apply(batch: list[list[Any]]) -> list[str]:
        return tokenizer.apply_chat_template(
            batch, chat_template=template, tokenize=False, add_generation_prompt=generation, **options
        )

    failures = (jinja2.TemplateError, TypeError, ValueError, KeyError)
    try:
        return apply(conversations)
    except failures as error:
        for conversation in conversations:
            try:
                apply([conversation])
            except failures as one:
                roles = ", ".join(str(message["role"]) for message in conversation)
                raise UserError(
                    f"the chat template refuses a conversation of {roles}: {one}"
                    f" (it begins {shorten(conversation[0]['content'], 60)!r})"
                ) from one
        raise UserError(f"the chat template fails: {error}") from error


def _messages(content: Content, role: str) -> list[Any]:
    return list(content) if is_messages(content) else [{"role": role, "content": content}]


# --- tokenizing ------------------------------------------------------------------------------------------------------


def _tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, no special tokens added."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    ids: list[list[int]] = []
    for start in range(0, len(texts), _BATCH):
        # The fast form skips offsets, which nobody here reads.
        batch = backend.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)
        ids += [encoding.ids for encoding in batch]
    return ids


def _encode(style: _Style, items: Sequence[tuple[Content, Sequence[Content]]]) -> list[Encoded]:
    """Renders and tokenizes a batch: first all texts, then one call of the tokenizer, then the splits."""
    prompts = [prompt for prompt, _ in items]
    chats: list[list[Any]] = []  # prompts, and below wholes, of the items that a template renders
    wholes: list[list[Any]] = []
    for prompt, completions in items:
        if _templated(style, prompt, completions):
            turns = _messages(prompt, "user")
            chats.append(turns)
            wholes += [turns + _messages(completion, "assistant") for completion in completions]
    prompt_texts = iter(_render(style, chats, True) if chats else [])
    whole_texts = iter(_render(style, wholes, False) if wholes else [])

    texts: list[str] = []  # of each item: the prompt, its tail, and each whole from where the tail begins
    cuts: list[int] = []
    for prompt, completions in items:
        if is_ids(prompt):
            continue
        templated = _templated(style, prompt, completions)
        text = next(prompt_texts) if templated else _joined(prompt)
        answers = [next(whole_texts) if templated else text + _joined(c) for c in completions]
        cut = _tail(style, text) if templated and all(answer.startswith(text) for answer in answers) else 0
        cuts.append(cut)
        texts += [text, text[cut:], *(answer[cut:] for answer in answers)]
    ids, words, places = iter(_tokenize(style.tokenizer, texts)), iter(texts), iter(cuts)

    eos = style.tokenizer.eos_token_id
    encoded = []
    for prompt, (_, completions) in zip(prompts, items):
        if is_ids(prompt):
            encoded.append(Encoded(list(prompt), [list(ids_) for ids_ in completions if is_ids(ids_)]))
            continue
        templated, cut = _templated(style, prompt, completions), next(places)
        text, tail_text = next(words), next(words)
        prompt_ids, tail = _one_start(style, next(ids)), next(ids)
        alike = prompt_ids[-len(tail) :] == tail  # else this tokenizer does look across its special tokens
        if cut == 0 or not alike:
            tail = prompt_ids
        done, merges = [], 0
        for _ in completions:
            whole_text, whole = next(words), next(ids)
            if cut and not alike:
                whole = _tokenize(style.tokenizer, [text[:cut] + whole_text])[0]
            whole = _one_start(style, whole) if tail is prompt_ids else whole
            if whole[: len(tail)] == tail:
                answer = whole[len(tail) :]
            else:
                merges += 1
                answer = _alone(style.tokenizer, _behind(tail_text, whole_text, templated))
            if not templated and eos is not None and answer[-1:] != [eos]:
                answer = [*answer, eos]
            done.append(answer)
        encoded.append(Encoded(prompt_ids, done, merges))
    return encoded


def _tail(style: _Style, prompt: str) -> int:
    """Where the last special token of a rendered prompt begins: what follows is tokenized independently of what stands
    before, so a prompt's beginning is tokenized once and not once a completion. 0 where there is none.
    """
    last = 0
    for match in style.special.finditer(prompt):
        last = match.start()
    return last


def _templated(style: _Style, prompt: Content, completions: Sequence[Content]) -> bool:
    """Whether a template renders this: messages, unless the template is `none`."""
    return style.template is not None and (is_messages(prompt) or any(is_messages(c) for c in completions))


def _joined(content: Content) -> str:
    """Content without a template: text as it stands, messages' words one after the other."""
    if is_messages(content):
        return "\n\n".join(message["content"] for message in content)
    return content if isinstance(content, str) else plain_text(content)


def _one_start(style: _Style, ids: list[int]) -> list[int]:
    """The ids with exactly one BOS where the tokenizer's rule has one, whether or not the text already held it."""
    start, bos = style.start, style.tokenizer.bos_token_id
    if not start:
        return ids
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    if tuple(ids[: len(start)]) == start or (bos is not None and ids[:1] == [bos]):
        return ids
    return [*start, *ids]


def _behind(prompt: str, whole: str, templated: bool) -> str:
    """The text of the completion: what of the whole follows the prompt, or follows all that the two have in common."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    # The generation prompt holds more than the turn of an answer does (an opened <think>, say): what differs is answer.
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), min(len(prompt), len(whole)))
    if templated and "\n" in prompt[same:].strip("\n") and len(prompt) - same > 64:
        raise UserError(
            "the chat template writes the prompt differently when an answer follows:"
            f" {shorten(prompt[same:], 60)!r} against {shorten(whole[same:], 60)!r}"
        )
    return whole[same:]


def _alone(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a completion by itself: behind a sentinel, so that no tokenizer takes it for the start of a text and puts
    a space before it.
    """
    special = [token for token in (tokenizer.eos_token, tokenizer.bos_token) if token]
    for sentinel in ("\n", ".", "0", *special):
        before, both = _tokenize(tokenizer, [sentinel, sentinel + text])
        if both[: len(before)] == before:
            return both[len(before) :]
    raise UserError(f"the tokenizer cannot encode a completion by itself: {shorten(text, 60)!r}")
