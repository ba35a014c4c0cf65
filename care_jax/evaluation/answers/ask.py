"""Answers of an endpoint: the same lines as those of a model on this machine."""

import contextlib
import pathlib
from collections.abc import Callable, Sequence

from care_jax.data.questions import Content, is_messages, plain_text
from care_jax.errors import UserError
from care_jax.evaluation.answers.prompts import GenerationSettings, PromptRow
from care_jax.evaluation.endpoint.cache import ReplyCache
from care_jax.evaluation.endpoint.client import Client, Endpoint
from care_jax.evaluation.endpoint.transport import Messages, request_body
from care_jax.textfiles import JsonObject, write_lines, writing


def ask_file(
    endpoint: Endpoint,
    prompts: Sequence[PromptRow],
    out: str | pathlib.Path,
    settings: GenerationSettings,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, int]:
    """Writes every answer to `out` when all have arrived; until then they are in `out`.cache.jsonl.

    With the chat template `none` the prompt is sent as plain text to the completions interface. If a call failed for
    good, `response` is null and `problem` says why. Returns the client's counts, and `failed`.
    """
    path = pathlib.Path(out)
    samples = [(prompt, number) for prompt in prompts for number in range(settings.n)]
    bodies = [
        request_body(
            endpoint.model,
            _request_prompt(prompt.prompt, plain=settings.chat_template == "none"),
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            # The seed makes the samples of one prompt differ; greedy answers need none.
            seed=prompt.seed(settings.seed, number) if settings.temperature > 0 else None,
        )
        for prompt, number in samples
    ]
    lines: list[JsonObject] = [{**prompt.fields} for prompt, _ in samples]
    with contextlib.closing(ReplyCache(path.with_name(path.name + ".cache.jsonl"))) as cache:
        client = Client(endpoint, cache)
        for number, reply in client.ask_all(bodies):
            lines[number] |= {"response": reply.text, "finish_reason": reply.finish_reason, "system": endpoint.model}
            if reply.text is None:
                lines[number]["problem"] = reply.problem
            progress()
    with writing("--out", path):
        write_lines(path, lines)
    return {**client.counts, "failed": sum(line["response"] is None for line in lines)}


def _request_prompt(prompt: Content, plain: bool) -> Messages | str:
    if plain or isinstance(prompt, str):
        return plain_text(prompt)
    if not is_messages(prompt):
        raise UserError("--base-url: found token ids, expected text or messages as the prompt for an endpoint")
    return [dict(message) for message in prompt]
