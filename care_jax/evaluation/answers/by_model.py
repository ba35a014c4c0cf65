"""A task's items answered by a model on this machine, in words or by log-probabilities."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from care_jax.data.readers.rated import user_turn
from care_jax.distributed import is_writer
from care_jax.evaluation.answers.prompts import Asked
from care_jax.evaluation.answers.responses import read_answers
from care_jax.evaluation.items import Item
from care_jax.textfiles import write_lines


def asked(items: Sequence[Item], task: str) -> list[Asked]:
    """The items as rows to be answered in words."""
    return [Asked(number, fields(item, task), user_turn(item.prompt)) for number, item in enumerate(items)]


def fields(item: Item, task: str) -> dict[str, Any]:
    """What stands in an answer's line beside the answer."""
    return {"id": item.id, "task": task, "question": item.question, **item.groups, **item.fields}


def logp_file(
    opened: Any,
    items: Sequence[Item],
    task: str,
    out: pathlib.Path,
    *,
    chat_template: str = "none",
    mesh: Any = None,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes a line an item with the `logps` of its choices; a file that already holds them all is left."""
    from care_jax.evaluation.answers import logprobs

    if out.exists() and _complete(out, items, opened.name):
        return
    encoded = [logprobs.encode(opened.tokenizer, item, chat_template) for item in items]
    found = logprobs.score(opened.model, opened.params, encoded, mesh)
    lines = []
    for item, values in zip(items, found, strict=True):
        best = max(range(len(values)), key=values.__getitem__)
        about = {"logps": values, "response": item.letters[best], "system": opened.name}
        lines.append({**fields(item, task), **about})
    progress(len(lines))

    if is_writer():
        write_lines(out, lines)


def _complete(out: pathlib.Path, items: Sequence[Item], system: str) -> bool:
    held = read_answers(str(out))
    return [(one.id, one.question, one.system) for one in held] == [(i.id, i.question, system) for i in items]
