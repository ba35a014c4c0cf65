"""Answers of a model on this machine: one JSON line per answer, in the order of the input, resumable.

The members of a batch depend only on the input. A file that was cut off is continued from the start of the batch in
which it ends, so that the same rows go through the same program and get the same answers.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from care_jax.data import chat
from care_jax.data.questions import user_turn
from care_jax.distributed import is_writer
from care_jax.errors import UserError
from care_jax.evaluation.answers.prompts import GenerationSettings, PromptRow
from care_jax.evaluation.model import LoadedModel
from care_jax.models import sampling
from care_jax.sharding import row_parts
from care_jax.textfiles import JsonObject, complete_lines, dump_line, progress_bar, writing


def generate_file(
    opened: LoadedModel,
    prompts: Sequence[PromptRow],
    out: str | pathlib.Path,
    settings: GenerationSettings,
    mesh: Mesh | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Writes every answer to `out`, after the answers that the file already holds.

    Returns (answers that were there before, all answers). check: called after each line; it may raise to stop, and the
    same call continues from there. Raises UserError if `out` holds anything but the first of these answers.
    """
    path = pathlib.Path(out)
    total = len(prompts) * settings.n
    writes = is_writer()
    written = _count_written(path, prompts, settings.n, opened.name) if writes else 0
    if jax.process_count() > 1:
        written = int(multihost_utils.broadcast_one_to_all(written))
    if written == total:
        return written, total
    bar = progress_bar(total, "answers", "answer", written, hidden=not writes)
    with bar, open(path if writes else os.devnull, "a", encoding="utf-8") as file:
        for line in generate_answers(opened, prompts, settings, mesh, written):
            file.write(dump_line(line))
            file.flush()
            bar.update()
            check()
    return written, total


def generate_answers(
    opened: LoadedModel,
    prompts: Sequence[PromptRow],
    settings: GenerationSettings,
    mesh: Mesh | None = None,
    skip: int = 0,
) -> Iterator[JsonObject]:
    """Yields the lines of answers after the first `skip`: the prompt's fields, `response`, `finish_reason`, `system`.

    The n answers to a prompt follow each other. An answer depends on its row number, the seed and the settings.
    """
    # Only complete batches: the width of a batch is part of the program that its rows go through.
    shards = row_parts(mesh)
    size = -(-settings.batch_size // shards) * shards
    first = skip // size * size
    samples = [(prompt, number) for prompt in prompts for number in range(settings.n)][first:]
    encoded = chat.encode_many(
        opened.tokenizer, [(prompt.prompt, ()) for prompt in prompts], settings.chat_template, settings.date
    )
    prompt_ids = {prompt.row: ids.prompt_ids for prompt, ids in zip(prompts, encoded, strict=True)}
    answers = sampling.generate(
        opened.model,
        opened.params,
        [prompt_ids[prompt.row] for prompt, _ in samples],
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seeds=[prompt.seed(settings.seed, number) for prompt, number in samples],
        stop_ids=stop_ids(opened, settings.chat_template),
        batch_size=size,
        mesh=mesh,
    )
    for place, ((prompt, _), answer) in enumerate(zip(samples, answers), start=first):
        if place >= skip:
            text = opened.tokenizer.decode(answer.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            yield {**prompt.fields, "response": text, "finish_reason": answer.finish_reason, "system": opened.name}


def stop_ids(opened: LoadedModel, template: str = "model") -> tuple[int, ...]:
    """Returns the ids that end an answer: the model's, the tokenizer's EOS, and the template's end of a turn."""
    tokenizer = opened.tokenizer
    ids = set(sampling.eos_ids(opened.folder))
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if template != "none" and (template != "model" or getattr(tokenizer, "chat_template", None)):
        _, answer = chat.encode(tokenizer, user_turn("a"), ({"role": "assistant", "content": "a"},), template)
        special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        ids |= set([id_ for id_ in answer if id_ in special][-1:])
    return tuple(sorted(ids))


def _count_written(path: pathlib.Path, prompts: Sequence[PromptRow], n: int, system: str) -> int:
    """Returns how many of the answers `path` holds, and cuts off an incomplete last line."""
    count = 0
    with writing("--out", path):
        for line in complete_lines(path):
            _check_line(f"{path} (line {count + 1})", line, prompts, count // n, system)
            count += 1
    return count


def _check_line(place: str, raw: bytes, prompts: Sequence[PromptRow], number: int, system: str) -> None:
    """Raises UserError if the line is not the system's answer to prompt `number`."""
    advice = "choose another file by --out, or remove this one"
    try:
        line = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{place}: not JSON: {error}; {advice}") from error
    if number >= len(prompts):
        raise UserError(f"{place}: the file holds more answers than the {len(prompts)} prompts need; {advice}")
    answer = line if isinstance(line, dict) else {}
    if answer.get("system") != system:
        raise UserError(f"{place}: found an answer of {answer.get('system')!r}, expected {system!r}; {advice}")
    prompt = json.loads(dump_line(prompts[number].fields))
    written, expected = (
        json.dumps({**fields, "response": None, "finish_reason": None, "system": None}, sort_keys=True)
        for fields in (answer, prompt)
    )
    if written != expected:
        raise UserError(f"{place}: the answer to another row than row {prompts[number].row} of the input; {advice}")
