"""Tokenized questions as flat arrays: what the planner needs of them (lengths) and what the filler needs (ids)."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32, Int64

from care_jax.data.questions import Content, Question
from care_jax.errors import UserError


class Encodings(NamedTuple):
    """One prompt with its completions, as token ids (`chat.Encoded` has the same fields)."""

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]
    boundary_merges: int = 0


EncodeMany = Callable[[Sequence[tuple[Content, Sequence[Content]]]], Sequence[Any]]


class Dropped(NamedTuple):
    """A response without room for a single completion token; indices are those of the questions handed in."""

    question: int
    response: int
    found: str


@dataclass(frozen=True)
class Corpus:
    """Q questions with N responses in all. A response is named by its id in 0..N-1, those of a question are adjacent.

    questions: with the responses that were kept, so that `Unit.responses` index `questions[q].responses`.
    max_length: prompt and completion together, tokens. truncated: completions cut on the right.
    """

    questions: tuple[Question, ...]
    prompt_tokens: Int32[np.ndarray, " prompt_tokens"]
    prompt_offsets: Int64[np.ndarray, " questions_and_one"]
    completion_tokens: Int32[np.ndarray, " completion_tokens"]
    completion_offsets: Int64[np.ndarray, " responses_and_one"]
    first_response: Int64[np.ndarray, " questions_and_one"]
    ratings: Float[np.ndarray, " responses"]
    max_length: int
    truncated: int = 0
    boundary_merges: int = 0
    dropped: tuple[Dropped, ...] = ()
    prompt_lengths: Int64[np.ndarray, " questions"] = field(init=False)
    completion_lengths: Int64[np.ndarray, " responses"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_lengths", np.diff(self.prompt_offsets))
        object.__setattr__(self, "completion_lengths", np.diff(self.completion_offsets))

    def __len__(self) -> int:
        return len(self.questions)

    def key(self, question: int) -> str:
        return self.questions[question].key

    def culture(self, question: int) -> str | None:
        return self.questions[question].culture

    def category(self, question: int) -> str | None:
        return self.questions[question].category

    def relation(self, question: int) -> str | None:
        return self.questions[question].relation

    def response_id(self, question: int, response: int) -> int:
        """The id of response number `response` of a question."""
        return int(self.first_response[question]) + int(response)

    def prompt(self, question: int) -> Int32[np.ndarray, " length"]:
        return self.prompt_tokens[self.prompt_offsets[question] : self.prompt_offsets[question + 1]]

    def completion(self, response: int) -> Int32[np.ndarray, " length"]:
        """The completion's ids of a response id."""
        return self.completion_tokens[self.completion_offsets[response] : self.completion_offsets[response + 1]]

    def length(self, question: int, response: int) -> int:
        """Completion tokens of a response id behind this question's prompt, which need not be its own (KTO)."""
        return min(int(self.completion_lengths[response]), self.max_length - int(self.prompt_lengths[question]))

    def sequence(self, question: int, response: int) -> tuple[Int32[np.ndarray, " p"], Int32[np.ndarray, " c"]]:
        """(prompt ids, completion ids) as the model sees a response id behind this question's prompt."""
        return self.prompt(question), self.completion(response)[: self.length(question, response)]

    def gather_prompts(self, questions: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " tokens"]:
        """The prompts of these questions, one after the other."""
        return self.prompt_tokens[ragged(self.prompt_offsets[questions], self.prompt_lengths[questions])]

    def gather_completions(
        self, responses: Int64[np.ndarray, " n"], lengths: Int64[np.ndarray, " n"]
    ) -> Int32[np.ndarray, " tokens"]:
        """The first `lengths` ids of these response ids, one after the other."""
        return self.completion_tokens[ragged(self.completion_offsets[responses], lengths)]


def ragged(starts: np.ndarray, lengths: np.ndarray) -> Int64[np.ndarray, " total"]:
    """start, start + 1, ... start + length - 1 for each of them, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def build(questions: Sequence[Question], encodings: Sequence[Any], max_length: int) -> Corpus:
    """A corpus from ids. encodings: of every question, `.prompt_ids`, `.completions`, `.boundary_merges`.

    A prompt is never cut; a completion is cut on the right to what the prompt leaves of max_length, and a response
    with nothing left (and a question with no response left) is dropped. Raises UserError for a prompt without tokens.
    """
    kept: list[Question] = []
    prompts: list[np.ndarray] = []
    completions: list[np.ndarray] = []
    counts: list[int] = []
    ratings: list[float] = []
    dropped: list[Dropped] = []
    truncated = merges = 0
    for index, (question, encoding) in enumerate(zip(questions, encodings, strict=True)):
        prompt = np.asarray(encoding.prompt_ids, np.int32)
        if not len(prompt):
            raise UserError(
                f"{question.file}: the prompt of {question.key!r} has no tokens, so nothing predicts a first"
            )
        room = max_length - len(prompt)
        merges += encoding.boundary_merges
        responses = []
        for number, (response, ids) in enumerate(zip(question.responses, encoding.completions, strict=True)):
            completion = np.asarray(ids, np.int32)
            if room < 1 or not len(completion):
                found = f"prompt of {len(prompt)} tokens, completion of {len(completion)}, max_length {max_length}"
                dropped.append(Dropped(index, number, found))
                continue
            if len(completion) > room:
                truncated += 1
                completion = completion[:room]
            responses.append(response)
            completions.append(completion)
            ratings.append(0.0 if response.rating is None else response.rating)
        if responses:
            whole = len(responses) == len(question.responses)
            kept.append(question if whole else dataclasses.replace(question, responses=tuple(responses)))
            prompts.append(prompt)
            counts.append(len(responses))
    return Corpus(
        questions=tuple(kept),
        prompt_tokens=_joined(prompts),
        prompt_offsets=_offsets([len(ids) for ids in prompts]),
        completion_tokens=_joined(completions),
        completion_offsets=_offsets([len(ids) for ids in completions]),
        first_response=_offsets(counts),
        ratings=np.asarray(ratings, np.float32),
        max_length=max_length,
        truncated=truncated,
        boundary_merges=merges,
        dropped=tuple(dropped),
    )


def tokenize(
    questions: Sequence[Question],
    tokenizer: Any,
    template: str = "model",
    max_length: int = 2048,
    *,
    date: str | None = None,
    encode_many: EncodeMany | None = None,
) -> Corpus:
    """Renders and tokenizes questions (`chat.encode_many`, or one's own) into a corpus; see `build` for what is cut."""
    if encode_many is None:
        from care_jax.data import chat

        def encode_many(items: Sequence[tuple[Content, Sequence[Content]]]) -> Sequence[Any]:
            return chat.encode_many(tokenizer, items, template, date)

    items = [(question.prompt, [response.content for response in question.responses]) for question in questions]
    return build(questions, encode_many(items), max_length)


def concatenate(corpora: Sequence[Corpus]) -> tuple[Corpus, list[int]]:
    """One corpus of several, and the index of each one's first question in it; `dropped` stays with the parts."""
    if len({corpus.max_length for corpus in corpora}) != 1:
        raise ValueError("corpora to concatenate need one max_length")
    first = np.cumsum([0, *(len(corpus) for corpus in corpora)])
    whole = Corpus(
        questions=tuple(question for corpus in corpora for question in corpus.questions),
        prompt_tokens=np.concatenate([corpus.prompt_tokens for corpus in corpora]),
        prompt_offsets=_offsets(np.concatenate([corpus.prompt_lengths for corpus in corpora])),
        completion_tokens=np.concatenate([corpus.completion_tokens for corpus in corpora]),
        completion_offsets=_offsets(np.concatenate([corpus.completion_lengths for corpus in corpora])),
        first_response=_offsets(np.concatenate([np.diff(corpus.first_response) for corpus in corpora])),
        ratings=np.concatenate([corpus.ratings for corpus in corpora]),
        max_length=corpora[0].max_length,
        truncated=sum(corpus.truncated for corpus in corpora),
        boundary_merges=sum(corpus.boundary_merges for corpus in corpora),
    )
    return whole, [int(index) for index in first[:-1]]


def _joined(parts: Sequence[np.ndarray]) -> Int32[np.ndarray, " total"]:
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def _offsets(lengths: Any) -> Int64[np.ndarray, " n_and_one"]:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
