"""Tokenized questions: what is cut, dropped and counted."""

import numpy as np
import pytest

from care_jax.data import chat, pipeline
from care_jax.data.chat import Encoded
from care_jax.data.corpus import build
from care_jax.data.questions import Question, Response
from care_jax.errors import UserError
from tests.data import corpora


def test_prompts_are_never_cut_and_completions_on_the_right():
    corpus = corpora.corpus_of([(4, [3, 20]), (10, [1, 1]), (9, [5])], max_length=10)
    assert (len(corpus), corpus.truncated) == (2, 2)
    assert [(one.question, one.response) for one in corpus.dropped] == [(1, 0), (1, 1)]
    assert "prompt of 10 tokens" in corpus.dropped[0].reason
    assert [len(q.responses) for q in corpus.questions] == [2, 1]
    prompt, completion = corpus.sequence(0, 1)
    assert (prompt.tolist(), completion.tolist()) == ([1, 2, 3, 4], [8, 9, 10, 11, 12, 13])
    assert corpus.key(1) == "arab\tq2"


def test_units_index_the_responses_that_were_kept():
    responses = tuple(Response(str(n), float(n), "m", n) for n in range(3))
    question = Question("q", responses, "k", file="f.jsonl")
    corpus = build([question], [Encoded([1], [[], [2], [3]])], 8)
    assert [r.content for r in corpus.questions[0].responses] == ["1", "2"]
    assert corpus.ratings.tolist() == [1, 2]
    (unit,) = [pipeline.units(corpus, shuffle=False, policy="best_worst")[0]]
    assert [corpus.completions[corpus.response_id(0, unit.responses[i])].tolist() for i in unit.pairs[0]] == [[3], [2]]
    with pytest.raises(UserError, match=r"f\.jsonl.*no tokens"):
        build([question], [Encoded([], [[1], [2], [3]])], 8)


def test_concatenation():
    parts = [corpora.corpus_of([(2, [3, 4])]), corpora.corpus_of([(5, [1]), (1, [2, 2])])]
    joined, first = pipeline.concatenate(parts)
    assert first == [0, 1]
    for part, shift in zip(parts, first):
        for q in range(len(part)):
            assert joined.key(shift + q) == part.key(q)
            for r in range(len(part.questions[q].responses)):
                expected = part.sequence(q, part.response_id(q, r))
                other = joined.sequence(shift + q, joined.response_id(shift + q, r))
                assert all(map(np.array_equal, expected, other))


def test_tokenize_encodes_every_prompt_with_its_completions():
    tokenizer = chat.load_tokenizer("sample")
    question = Question("what", (Response("a", 2.0, "m", 0), Response("bb", None, "m", 1)), "k")
    corpus = pipeline.tokenize([question], tokenizer, max_length=8)
    for number, response in enumerate(question.responses):
        ids = chat.encode(tokenizer, "what", response.content)
        assert tuple(part.tolist() for part in corpus.sequence(0, number)) == ids
    merges = chat.encode_many(tokenizer, [("what", ["a", "bb"])])[0].boundary_merges
    assert (corpus.boundary_merges, corpus.ratings.tolist()) == (merges, [2, 0])
