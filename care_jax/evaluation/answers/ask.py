"""Answers of an endpoint to rows or items: the same lines as those of a model on this machine."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from care_jax.data.preferences import stable_hash
from care_jax.data.questions import Content, is_messages, plain_text
from care_jax.errors import UserError
from care_jax.evaluation.answers.prompts import Asked
from care_jax.evaluation.endpoint import Client, Endpoint, ReplyCache, request_body
from care_jax.textfiles import write_lines


def ask_file(
    endpoint: Endpoint,
    asked: Sequence[Asked],
    out: str | pathlib.Path,
    *,
    temperature: float,
    top_p: float,
    max_tokens: int,
    n: int = 1,
    seed: int = 0,
    raw: bool = False,
    system: str | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Writes every answer to `out` when all are there; those that came before a stop are in `out`.cache.jsonl.

    raw: the question as it stands, by the completions interface, instead of a user's message. An answer that could not
    be had is a line with `response` null and `problem`. Returns the client's counts, with `failed`.
    """
    path = pathlib.Path(out)
    wanted = [(one, number) for one in asked for number in range(n)]
    bodies = [
        request_body(
            endpoint.model,
            _prompt(one.prompt, raw),
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            # Samples of one question differ by it; greedy answers need none.
            seed=stable_hash(seed, "answer", one.row, number) % 2**31 if temperature > 0 else None,
        )
        for one, number in wanted
    ]
    cache = ReplyCache(path.with_name(path.name + ".cache.jsonl"))
    client = Client(endpoint, cache)
    lines: list[Mapping[str, Any]] = [{} for _ in wanted]
    try:
        for place, reply in client.ask_all(bodies):
            about: dict[str, Any] = {"response": reply.text, "finish_reason": reply.finish_reason}
            about["system"] = system or endpoint.model
            if reply.text is None:
                about["problem"] = reply.problem
            lines[place] = {**wanted[place][0].fields, **about}
            progress()
    finally:
        cache.close()
    try:
        write_lines(path, lines)
    except OSError as error:
        raise UserError(f"--out: cannot write {path}: {error.strerror}") from None
    return {**client.counts, "failed": sum(line["response"] is None for line in lines)}


def _prompt(prompt: Content, raw: bool) -> Any:
    if raw or isinstance(prompt, str):
        return plain_text(prompt)
    if not is_messages(prompt):
        raise UserError("--base-url: an endpoint takes text or messages, not token ids")
    return [dict(message) for message in prompt]
