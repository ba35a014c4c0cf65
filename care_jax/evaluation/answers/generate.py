"""A model's answers to a file of questions: one JSON line an answer, in the order of the input, resumable.

The answers are made in batches whose members depend on the input alone; a file that was cut anywhere is gone on with
from the beginning of the batch it was cut in, so that the same numbers run through the same programs.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from care_jax.data import chat
from care_jax.data.preferences import stable_hash
from care_jax.data.readers.rated import user_turn
from care_jax.distributed import is_writer
from care_jax.errors import UserError
from care_jax.evaluation.answers.prompts import Asked, read_prompts
from care_jax.evaluation.model import LoadedModel
from care_jax.models import sampling
from care_jax.textfiles import dump_line

__all__ = ["Asked", "Settings", "answer_file", "answers", "read_prompts", "stop_ids"]
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to answer. temperature 0 is greedy; n answers to each row; date: for a template that asks for today's."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256
    n: int = 1
    seed: int = 0
    chat_template: str = "model"
    date: str | None = None
    batch_size: int = _BATCH


def stop_ids(opened: LoadedModel, template: str = "model") -> tuple[int, ...]:
    """The ids that end an answer: the model's own, the tokenizer's EOS, and what the template ends a turn with."""
    tokenizer = opened.tokenizer
    found = set(sampling.eos_ids(opened.folder))
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    if template != "none" and (template != "model" or getattr(tokenizer, "chat_template", None)):
        _, answer = chat.encode(tokenizer, user_turn("a"), ({"role": "assistant", "content": "a"},), template)
        special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        found |= set([id_ for id_ in answer if id_ in special][-1:])
    return tuple(sorted(found))


def answers(
    opened: LoadedModel, asked: Sequence[Asked], settings: Settings, mesh: Mesh | None = None, skip: int = 0
) -> Iterator[dict[str, Any]]:
    """The lines of all answers behind the first `skip`: the row's fields, `response`, `finish_reason`, `system`.

    The n answers of a row follow each other. What a row is answered depends on its number, the seed and the settings.
    """
    # Whole batches only: a batch's width is part of the program that its rows run through.
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-settings.batch_size // parts) * parts
    first = skip // size * size
    wanted = [(one, number) for one in asked for number in range(settings.n)][first:]
    encoded = chat.encode_many(
        opened.tokenizer, [(one.prompt, ()) for one in asked], settings.chat_template, settings.date
    )
    prompts = {one.row: ids.prompt_ids for one, ids in zip(asked, encoded, strict=True)}
    made = sampling.generate(
        opened.model,
        opened.params,
        [prompts[one.row] for one, _ in wanted],
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seeds=[stable_hash(settings.seed, "answer", one.row, number) % 2**31 for one, number in wanted],
        stop_ids=stop_ids(opened, settings.chat_template),
        batch_size=size,
        mesh=mesh,
    )
    for place, ((one, _), answer) in enumerate(zip(wanted, made), start=first):
        if place >= skip:
            text = opened.tokenizer.decode(answer.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            about = {"response": text, "finish_reason": answer.finish_reason, "system": opened.name}
            yield {**one.fields, **about}


def answer_file(
    opened: LoadedModel,
    asked: Sequence[Asked],
    out: str | pathlib.Path,
    settings: Settings,
    mesh: Mesh | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Writes every answer to `out`, going on behind those that it holds; returns (held before, in all).

    check: called after each line, and may raise to stop; the same call goes on from there. Raises UserError where
    `out` holds something else than the beginning of these answers.
    """
    path = pathlib.Path(out)
    total = len(asked) * settings.n
    writes = is_writer()
    held = _held(path, asked, settings.n, opened.name) if writes else 0
    if jax.process_count() > 1:
        held = int(multihost_utils.broadcast_one_to_all(held))
    if held == total:
        return held, total
    interval = 0.2 if sys.stderr.isatty() else 10
    bar = tqdm(total=total, initial=held, desc="answers", unit="answer", mininterval=interval, disable=not writes)
    with bar, open(path if writes else os.devnull, "a", encoding="utf-8") as file:
        for line in answers(opened, asked, settings, mesh, held):
            file.write(dump_line(line))
            file.flush()
            bar.update()
            check()
    return held, total


def _held(path: pathlib.Path, asked: Sequence[Asked], n: int, system: str) -> int:
    """How many whole lines `path` holds, which must be the first answers; what is torn behind them is cut off."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0)
            end = held = 0
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                _check_line(f"{path} (line {held + 1})", raw, asked, held // n, system)
                held += 1
                end += len(raw)
            file.truncate(end)
    except OSError as error:
        raise UserError(f"--out: cannot write {path}: {error.strerror}") from None
    return held


def _check_line(place: str, raw: bytes, asked: Sequence[Asked], number: int, system: str) -> None:
    advice = "choose another file by --out, or remove this one"
    try:
        line = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{place}: not JSON: {error}; {advice}") from error
    if number >= len(asked):
        raise UserError(f"{place}: more answers than were asked for ({len(asked)} rows); {advice}")
    added = ("response", "finish_reason", "system")
    found = line if isinstance(line, dict) else {}
    if found.get("system") != system:
        raise UserError(f"{place}: an answer of {found.get('system')!r}, not of {system!r}; {advice}")
    given = json.loads(dump_line(asked[number].fields))
    same = [json.dumps({k: v for k, v in one.items() if k not in added}, sort_keys=True) for one in (found, given)]
    if same[0] != same[1]:
        raise UserError(f"{place}: the answer to another row than row {asked[number].row} of the input; {advice}")
