"""log-probabilities of every response of a dataset under one model, by the program of the reference pass."""

import pathlib
from typing import Any

import jax
import numpy as np

from care_jax import sharding
from care_jax.data import pipeline
from care_jax.data.corpus import Corpus
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.capacities import round_up
from care_jax.data.questions import Question
from care_jax.stopping import StopSignal
from care_jax.training.forward.passes import ForwardPass

_TOKENS = 8192  # of a microbatch, about: enough to keep a device busy, little to hold
_NO_LIMIT = 2**30  # nothing is cut: a cut response would be another one


def score(
    model: Any,
    params: Any,
    tokenizer: Any,
    questions: list[Question],
    *,
    chat_template: str = "model",
    date: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[list[dict[str, Any]], Corpus]:
    """One line a response, {row, field, logp, tokens}, in the order of the input's rows; and the corpus they stand in.

    logp: float32, the sum over the completion's `tokens` tokens (turn end included), in nats. Nothing is cut; a
    response without a token has no line and stands in `corpus.dropped`. date: for a template that asks for today's.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    corpus = pipeline.tokenize(questions, tokenizer, chat_template, _NO_LIMIT, date=date)
    counts = np.diff(corpus.first_response).tolist()
    names = [(question, number) for question, count in enumerate(counts) for number in range(count)]
    if not names:
        return [], corpus
    sequences = [(question, corpus.response_id(question, number)) for question, number in names]
    layout = _layout(corpus, mesh)
    with jax.set_mesh(mesh):
        logps = ForwardPass(model, corpus, layout, mesh, StopSignal()).run(sequences, {"params": params}, "score")
    lines = []
    for (question, number), (_, response), logp in zip(names, sequences, logps.tolist()):
        about = corpus.questions[question].responses[number]
        field = about.field if about.field in ("chosen", "rejected") else "response"
        tokens = int(corpus.completion_lengths[response])
        lines.append({"row": about.row, "field": field, "logp": logp, "tokens": tokens})
    return sorted(lines, key=lambda line: line["row"]), corpus  # stable: several of one row stay as they came


def _layout(corpus: Corpus, mesh: jax.sharding.Mesh) -> BatchShape:
    """Rows of the longest sequence, as many as fill a microbatch or as the whole needs; prompts stand once."""
    counts = np.diff(corpus.first_response)
    prompts, completions = corpus.prompt_lengths, corpus.completion_lengths
    longest = int(np.max(np.repeat(prompts, counts) + completions))
    length = round_up(longest, 128)
    tokens = int(prompts.sum() + completions.sum())
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = round_up(max(1, min(_TOKENS // length, -(-tokens // length))), parts)
    slots = rows * length
    # An average microbatch's completion tokens and some more: each costs a pass through the vocabulary.
    average = int(1.15 * slots * completions.sum() / tokens)
    return BatchShape(
        rows=rows,
        row_length=length,
        responses=round_up(min(slots // int(completions.min()), 16 + 4 * slots * len(completions) // tokens), 8),
        completions=min(slots, round_up(max(average, int(completions.max())), 128)),
    )


def account(path: str | pathlib.Path, corpus: Corpus, rows: int, dropped: dict[str, int]) -> str:
    """What became of the rows, in one sentence. dropped: rows by reason, as the reading's report has them."""
    lost = {reason: count for reason, count in dropped.items() if count}
    if corpus.dropped:
        lost["without tokens"] = len(corpus.dropped)
    shown = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in lost.items()) or "nothing"
    merged = f"; {corpus.boundary_merges} boundaries merged" if corpus.boundary_merges else ""
    return f"{path}: {rows} rows, {len(corpus.completion_lengths)} responses; dropped: {shown}{merged}"
