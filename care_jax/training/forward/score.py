"""Log-probabilities of every response of a dataset under one model, by the program of the reference pass."""

import pathlib

import jax
import numpy as np
from jax.sharding import Mesh

from care_jax import sharding
from care_jax.data import pipeline
from care_jax.data.chat import Tokenizer
from care_jax.data.corpus import Corpus
from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.capacities import round_up
from care_jax.data.questions import Question
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder
from care_jax.stopping import StopSignal
from care_jax.textfiles import JsonObject
from care_jax.training.forward.passes import ForwardPass

_TOKENS_PER_MICROBATCH = 8192  # about: enough to keep a device busy, and little memory
_NO_LIMIT = 2**30  # nothing is cut: a cut response would be another one


def score(
    model: Decoder,
    params: Params,
    tokenizer: Tokenizer,
    questions: list[Question],
    *,
    chat_template: str = "model",
    date: str | None = None,
    mesh: Mesh | None = None,
) -> tuple[list[JsonObject], Corpus]:
    """Returns one line per response, {row, field, logp, tokens}, in the order of the input's rows; and their corpus.

    logp: float32, the sum over the completion's `tokens` tokens (turn end included), in nats. Nothing is cut; a
    response without a token has no line and is in `corpus.dropped`. date: the day, for a template that asks for it.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    corpus = pipeline.tokenize(questions, tokenizer, chat_template, _NO_LIMIT, date=date)
    counts = np.diff(corpus.first_response).tolist()
    names = [(question, number) for question, count in enumerate(counts) for number in range(count)]
    if not names:
        return [], corpus
    sequences = [(question, corpus.response_id(question, number)) for question, number in names]
    shape = _batch_shape(corpus, mesh)
    with jax.set_mesh(mesh):
        logps = ForwardPass(model, corpus, shape, mesh, StopSignal()).run(sequences, {"params": params}, "score")
    lines = []
    for (question, number), (_, response_id), logp in zip(names, sequences, logps.tolist()):
        response = corpus.questions[question].responses[number]
        field = response.field if response.field in ("chosen", "rejected") else "response"
        tokens = int(corpus.completion_lengths[response_id])
        lines.append({"row": response.row_number, "field": field, "logp": logp, "tokens": tokens})
    return sorted(lines, key=lambda line: line["row"]), corpus  # stable: responses of one row keep their order


def _batch_shape(corpus: Corpus, mesh: Mesh) -> BatchShape:
    """Chooses rows as long as the longest sequence, and as many as a microbatch or all of the data needs."""
    counts = np.diff(corpus.first_response)
    prompts, completions = corpus.prompt_lengths, corpus.completion_lengths
    longest = int(np.max(np.repeat(prompts, counts) + completions))
    length = round_up(longest, 128)
    tokens = int(prompts.sum() + completions.sum())
    parts = sharding.row_parts(mesh)
    rows = round_up(max(1, min(_TOKENS_PER_MICROBATCH // length, -(-tokens // length))), parts)
    slots = rows * length
    # The completion tokens of an average microbatch and some more: each costs a pass through the vocabulary.
    average = int(1.15 * slots * completions.sum() / tokens)
    return BatchShape(
        rows=rows,
        row_length=length,
        responses=round_up(min(slots // int(completions.min()), 16 + 4 * slots * len(completions) // tokens), 8),
        completion_tokens=min(slots, round_up(max(average, int(completions.max())), 128)),
    )


def summarize(path: str | pathlib.Path, corpus: Corpus, rows: int, dropped: dict[str, int]) -> str:
    """Returns what became of the rows, in one sentence. dropped: rows by reason, as the reader's report counts them."""
    reasons = {reason: count for reason, count in dropped.items() if count}
    if corpus.dropped:
        reasons["without tokens"] = len(corpus.dropped)
    shown = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items()) or "nothing"
    merged = f"; {corpus.boundary_merges} boundaries merged" if corpus.boundary_merges else ""
    return f"{path}: {rows} rows, {len(corpus.completion_lengths)} responses; dropped: {shown}{merged}"
