"""Tokenized questions as arrays: lengths for the planner, ids for the filler."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int32, Int64

from care_jax.data import chat
from care_jax.data.chat import Tokenizer
from care_jax.data.questions import Question, Response, Stored
from care_jax.errors import UserError

# (question, response id): the prompt of a question followed by a response, which need not be its own (KTO).
SequenceId = tuple[int, int]
Ids = Sequence[int] | Stored
Encoding = tuple[Ids, Sequence[Ids], int]  # the fields of `chat.Encoded`, or ids in a token cache


class Dropped(NamedTuple):
    """A response that has no room for a completion token; the indices are those before anything was dropped."""

    question: int
    response: int
    reason: str


@runtime_checkable
class IdRecords(Protocol):
    """Ids on disk that are read when they are needed (`token_cache.TokenCache`)."""

    def gather(
        self, records: Int64[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, " total"], Int64[np.ndarray, " n"]]: ...


@dataclass(frozen=True)
class Tokens:
    """The ids of n sequences, in `flat` or in the records of token caches.

    starts: where each sequence begins, in `flat` or in its record. places: (index of the cache, record) of each; the
    index is -1 for ids in `flat`. None if all are there.
    """

    lengths: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " n"]
    flat: Int32[np.ndarray, " total"]
    caches: tuple[IdRecords, ...] = ()
    places: Int64[np.ndarray, "n 2"] | None = None

    @classmethod
    def of(cls, contents: Sequence[Ids], lengths: Sequence[int]) -> "Tokens":
        """The first `lengths` ids of each content."""
        caches: list[IdRecords] = []
        places = np.full((len(contents), 2), -1, np.int64)
        starts = _offsets(lengths)[:-1]
        parts: list[np.ndarray] = []
        end = 0
        for number, (content, length) in enumerate(zip(contents, lengths, strict=True)):
            if isinstance(content, Stored):
                if content.cache not in caches:
                    caches.append(content.cache)
                places[number] = caches.index(content.cache), content.record
                starts[number] = content.start
            else:
                parts.append(np.asarray(content[:length], np.int32))
                starts[number] = end
                end += length
        flat = np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
        return cls(np.asarray(lengths, np.int64), starts, flat, tuple(caches), places if caches else None)

    @classmethod
    def join(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """The sequences of all parts, one part after the other."""
        caches: list[IdRecords] = []
        places, starts = [], []
        flat_length = 0
        for part in parts:
            part_places = np.full((len(part.lengths), 2), -1, np.int64) if part.places is None else part.places.copy()
            in_memory = part_places[:, 0] < 0
            starts.append(np.where(in_memory, part.starts + flat_length, part.starts))
            part_places[~in_memory, 0] += len(caches)
            places.append(part_places)
            caches += part.caches
            flat_length += len(part.flat)
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
        """The first `lengths` ids of these sequences, one sequence after the other."""
        if self.places is None:
            return self.flat[ragged(self.starts[items], lengths)]
        ends = np.cumsum(lengths)
        ids = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
        targets, starts, places = ends - lengths, self.starts[items], self.places[items]
        for cache in np.unique(places[:, 0]).tolist():
            here = np.flatnonzero(places[:, 0] == cache)
            source, base = self.flat, np.zeros(len(here), np.int64)
            if cache >= 0:
                source, base = self.caches[cache].gather(places[here, 1])
            ids[ragged(targets[here], lengths[here])] = source[ragged(base + starts[here], lengths[here])]
        return ids


@dataclass(frozen=True)
class Corpus:
    """Questions and all their responses. A response id numbers the responses; those of a question are adjacent.

    questions: questions with the responses that were kept; `Unit.responses` are indices into `questions[q].responses`.
    max_length: tokens of prompt and completion together. truncated: how many completions were cut on the right.
    boundary_merges: how many were encoded by themselves (`chat.Encoded`).
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

    def response_id(self, question: int, response: int) -> int:
        """The response id of a question's response, given by its index in the question."""
        return int(self.first_response[question]) + int(response)

    def length(self, question: int, response: int) -> int:
        """Completion tokens of a response id after the prompt of this question."""
        return min(int(self.completion_lengths[response]), self.max_length - int(self.prompt_lengths[question]))

    def sequence(self, question: int, response: int) -> tuple[Int32[np.ndarray, " p"], Int32[np.ndarray, " c"]]:
        """(prompt ids, completion ids) of a response id after the prompt of this question, as the model sees them."""
        return self.prompts[question], self.completions[response][: self.length(question, response)]


def ragged(starts: np.ndarray, lengths: np.ndarray) -> Int64[np.ndarray, " total"]:
    """start, start + 1, ..., start + length - 1 for each start and length, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def build(questions: Sequence[Question], encodings: Sequence[Encoding], max_length: int) -> Corpus:
    """A corpus from the encoding of each question.

    A prompt is never cut. A completion is cut on the right to what the prompt leaves of max_length. A response with
    nothing left is dropped, and so is a question without responses. Raises UserError for a prompt without tokens.
    """
    kept: list[Question] = []
    prompts: list[Ids] = []
    completions: list[Ids] = []
    lengths: list[int] = []
    counts: list[int] = []
    ratings: list[float] = []
    dropped: list[Dropped] = []
    truncated = 0
    for index, (question, (prompt, encoded, _)) in enumerate(zip(questions, encodings, strict=True)):
        if not len(prompt):
            raise UserError(
                f"{question.file}: the prompt of {question.key!r} has no tokens, so nothing predicts a first"
            )
        space = max_length - len(prompt)
        responses: list[Response] = []
        for number, (response, completion) in enumerate(zip(question.responses, encoded, strict=True)):
            if space < 1 or not len(completion):
                reason = f"prompt of {len(prompt)} tokens, completion of {len(completion)}, max_length {max_length}"
                dropped.append(Dropped(index, number, reason))
                continue
            truncated += len(completion) > space
            responses.append(response)
            completions.append(completion)
            lengths.append(min(len(completion), space))
            ratings.append(0.0 if response.rating is None else response.rating)
        if responses:
            complete = len(responses) == len(question.responses)
            kept.append(question if complete else dataclasses.replace(question, responses=tuple(responses)))
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
        boundary_merges=sum(merges for _, _, merges in encodings),
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
    """Renders and tokenizes questions into a corpus; `build` says what is cut. template, date: as in `chat.encode`.

    Questions of a token cache keep the ids stored there. Raises UserError if these were made by another tokenizer or
    template.
    """
    caches = {id(q.prompt.cache): q.prompt.cache for q in questions if isinstance(q.prompt, Stored)}
    for cache in caches.values():
        cache.check(tokenizer, template, date)
    items = [(q.prompt, [r.content for r in q.responses]) for q in questions if not isinstance(q.prompt, Stored)]
    encoded = iter(chat.encode_many(tokenizer, items, template, date))
    encodings: list[Encoding] = [
        _stored(q, q.prompt) if isinstance(q.prompt, Stored) else next(encoded) for q in questions
    ]
    return build(questions, encodings, max_length)


def _stored(question: Question, prompt: Stored) -> Encoding:
    completions = [response.content for response in question.responses if isinstance(response.content, Stored)]
    return prompt, completions, prompt.merges


def concatenate(corpora: Sequence[Corpus]) -> tuple[Corpus, list[int]]:
    """One corpus of several, and for each of these the index of its first question there. `dropped` is not joined."""
    if len({corpus.max_length for corpus in corpora}) != 1:
        raise ValueError("corpora with different max_length cannot be concatenated")
    joined = Corpus(
        questions=tuple(question for corpus in corpora for question in corpus.questions),
        prompts=Tokens.join([corpus.prompts for corpus in corpora]),
        completions=Tokens.join([corpus.completions for corpus in corpora]),
        first_response=_offsets(np.concatenate([np.diff(corpus.first_response) for corpus in corpora])),
        ratings=np.concatenate([corpus.ratings for corpus in corpora]),
        max_length=corpora[0].max_length,
        truncated=sum(corpus.truncated for corpus in corpora),
        boundary_merges=sum(corpus.boundary_merges for corpus in corpora),
    )
    return joined, _offsets([len(corpus) for corpus in corpora])[:-1].tolist()


def _offsets(lengths: Sequence[int] | Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n_and_one"]:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
