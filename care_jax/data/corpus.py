"""Tokenized questions as arrays: what the planner needs of them (lengths) and what the filler needs (ids)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32, Int64

from care_jax.data import chat
from care_jax.data.chat import Tokenizer
from care_jax.data.questions import Question, Stored
from care_jax.errors import UserError


class Encodings(NamedTuple):
    """One prompt with its completions, as token ids or `Stored` (`chat.Encoded` has the same fields)."""

    prompt_ids: Any
    completions: Sequence[Any]
    boundary_merges: int = 0


# (question, response id): the question's prompt followed by a response, not always its own (KTO).
SequenceId = tuple[int, int]


class Dropped(NamedTuple):
    """A response without room for a single completion token; indices are those of the questions handed in."""

    question: int
    response: int
    found: str


@dataclass(frozen=True)
class Tokens:
    """The ids of n sequences: they lie in `flat`, or in the records of token caches, which are read when asked for.

    starts: where each begins, in `flat` or in its record. caches, places: (index of the cache or -1, record) of each.
    """

    lengths: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " n"]
    flat: Int32[np.ndarray, " total"]
    caches: tuple[Any, ...] = ()
    places: Int64[np.ndarray, "n 2"] | None = None

    @classmethod
    def of(cls, contents: Sequence[Any], lengths: Sequence[int]) -> "Tokens":
        """The first `lengths` ids of each content: ids, or `Stored`."""
        caches: list[Any] = []
        places = np.full((len(contents), 2), -1, np.int64)
        held = np.asarray(lengths, np.int64)
        starts = np.concatenate([[0], np.cumsum(held)])[:-1].astype(np.int64)
        parts: list[np.ndarray] = []
        at = 0
        for number, (content, length) in enumerate(zip(contents, lengths, strict=True)):
            if isinstance(content, Stored):
                if content.cache not in caches:
                    caches.append(content.cache)
                places[number] = caches.index(content.cache), content.record
                starts[number] = content.start
            else:
                parts.append(np.asarray(content[:length], np.int32))
                starts[number] = at
                at += length
        flat = np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
        return cls(held, starts, flat, tuple(caches), places if caches else None)

    @classmethod
    def join(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """Several, one after the other."""
        caches: list[Any] = []
        places, starts = [], []
        before = 0
        for part in parts:
            own = np.full((len(part.lengths), 2), -1, np.int64) if part.places is None else part.places.copy()
            in_memory = own[:, 0] < 0
            starts.append(np.where(in_memory, part.starts + before, part.starts))
            own[~in_memory, 0] += len(caches)
            places.append(own)
            caches += part.caches
            before += len(part.flat)
        return cls(
            np.concatenate([part.lengths for part in parts]),
            np.concatenate(starts),
            np.concatenate([part.flat for part in parts]),
            tuple(caches),
            np.concatenate(places) if caches else None,
        )

    def __getitem__(self, item: int) -> Int32[np.ndarray, " length"]:
        return self.gather(np.asarray([item], np.int64), self.lengths[item : item + 1])

    def gather(self, items: Int64[np.ndarray, " k"], lengths: Int64[np.ndarray, " k"]) -> Int32[np.ndarray, " total"]:
        """The first `lengths` ids of these sequences, one after the other."""
        if self.places is None:
            return self.flat[ragged(self.starts[items], lengths)]
        ends = np.cumsum(lengths)
        found = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
        target, starts, places = ends - lengths, self.starts[items], self.places[items]
        for number in np.unique(places[:, 0]).tolist():
            here = np.flatnonzero(places[:, 0] == number)
            flat, base = self.flat, np.zeros(len(here), np.int64)
            if number >= 0:
                flat, base = self.caches[number].gather(places[here, 1])
            found[ragged(target[here], lengths[here])] = flat[ragged(base + starts[here], lengths[here])]
        return found


@dataclass(frozen=True)
class Corpus:
    """Q questions with N responses in all. A response is named by its id in 0..N-1, those of a question are adjacent.

    questions: with the responses that were kept, so that `Unit.responses` index `questions[q].responses`.
    max_length: prompt and completion together, tokens. truncated: completions cut on the right.
    """

    questions: Sequence[Question]
    prompts: Tokens
    completions: Tokens
    first_response: Int64[np.ndarray, " questions_and_one"]
    ratings: Float[np.ndarray, " responses"]
    max_length: int
    truncated: int = 0
    boundary_merges: int = 0
    dropped: tuple[Dropped, ...] = ()

    @property
    def prompt_lengths(self) -> Int64[np.ndarray, " questions"]:
        return self.prompts.lengths

    @property
    def completion_lengths(self) -> Int64[np.ndarray, " responses"]:
        return self.completions.lengths

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
        return self.prompts[question]

    def completion(self, response: int) -> Int32[np.ndarray, " length"]:
        """The completion's ids of a response id."""
        return self.completions[response]

    def length(self, question: int, response: int) -> int:
        """Completion tokens of a response id behind this question's prompt, which need not be its own (KTO)."""
        return min(int(self.completion_lengths[response]), self.max_length - int(self.prompt_lengths[question]))

    def sequence(self, question: int, response: int) -> tuple[Int32[np.ndarray, " p"], Int32[np.ndarray, " c"]]:
        """(prompt ids, completion ids) as the model sees a response id behind this question's prompt."""
        return self.prompt(question), self.completion(response)[: self.length(question, response)]

    def gather_prompts(self, questions: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " tokens"]:
        """The prompts of these questions, one after the other."""
        return self.prompts.gather(questions, self.prompt_lengths[questions])

    def gather_completions(
        self, responses: Int64[np.ndarray, " n"], lengths: Int64[np.ndarray, " n"]
    ) -> Int32[np.ndarray, " tokens"]:
        """The first `lengths` ids of these response ids, one after the other."""
        return self.completions.gather(responses, lengths)


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
    prompts: list[Any] = []
    completions: list[Any] = []
    lengths: list[int] = []
    counts: list[int] = []
    ratings: list[float] = []
    dropped: list[Dropped] = []
    truncated = merges = 0
    for index, (question, encoding) in enumerate(zip(questions, encodings, strict=True)):
        prompt = encoding.prompt_ids
        if not len(prompt):
            raise UserError(
                f"{question.file}: the prompt of {question.key!r} has no tokens, so nothing predicts a first"
            )
        room = max_length - len(prompt)
        merges += encoding.boundary_merges
        responses = []
        for number, (response, completion) in enumerate(zip(question.responses, encoding.completions, strict=True)):
            if room < 1 or not len(completion):
                found = f"prompt of {len(prompt)} tokens, completion of {len(completion)}, max_length {max_length}"
                dropped.append(Dropped(index, number, found))
                continue
            truncated += len(completion) > room
            responses.append(response)
            completions.append(completion)
            lengths.append(min(len(completion), room))
            ratings.append(0.0 if response.rating is None else response.rating)
        if responses:
            whole = len(responses) == len(question.responses)
            kept.append(question if whole else dataclasses.replace(question, responses=tuple(responses)))
            prompts.append(prompt)
            counts.append(len(responses))
    return Corpus(
        questions=tuple(kept),
        prompts=Tokens.of(prompts, [len(ids) for ids in prompts]),
        completions=Tokens.of(completions, lengths),
        first_response=_offsets(counts),
        ratings=np.asarray(ratings, np.float32),
        max_length=max_length,
        truncated=truncated,
        boundary_merges=merges,
        dropped=tuple(dropped),
    )


def tokenize(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    template: str = "model",
    max_length: int = 2048,
    *,
    date: str | None = None,
) -> Corpus:
    """Renders and tokenizes questions into a corpus; see `build` for what is cut.

    Questions of a token cache keep the ids stored there. Raises UserError if these were made by another tokenizer or
    template.
    """
    for cache in {id(q.prompt.cache): q.prompt.cache for q in questions if isinstance(q.prompt, Stored)}.values():
        cache.check(tokenizer, template, date)
    items = [(q.prompt, [r.content for r in q.responses]) for q in questions if not isinstance(q.prompt, Stored)]
    fresh = iter(chat.encode_many(tokenizer, items, template, date))
    encodings = [
        Encodings(q.prompt, [r.content for r in q.responses], q.prompt.merges)
        if isinstance(q.prompt, Stored)
        else next(fresh)
        for q in questions
    ]
    return build(questions, encodings, max_length)


def concatenate(corpora: Sequence[Corpus]) -> tuple[Corpus, list[int]]:
    """One corpus of several, and the index of each one's first question in it; `dropped` stays with the parts."""
    if len({corpus.max_length for corpus in corpora}) != 1:
        raise ValueError("corpora to concatenate need one max_length")
    first = np.cumsum([0, *(len(corpus) for corpus in corpora)])
    whole = Corpus(
        questions=tuple(question for corpus in corpora for question in corpus.questions),
        prompts=Tokens.join([corpus.prompts for corpus in corpora]),
        completions=Tokens.join([corpus.completions for corpus in corpora]),
        first_response=_offsets(np.concatenate([np.diff(corpus.first_response) for corpus in corpora])),
        ratings=np.concatenate([corpus.ratings for corpus in corpora]),
        max_length=corpora[0].max_length,
        truncated=sum(corpus.truncated for corpus in corpora),
        boundary_merges=sum(corpus.boundary_merges for corpus in corpora),
    )
    return whole, [int(index) for index in first[:-1]]


def _offsets(lengths: Any) -> Int64[np.ndarray, " n_and_one"]:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
