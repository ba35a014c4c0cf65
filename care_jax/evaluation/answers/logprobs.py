"""Log-probabilities of choices after a prompt, for many prompts at once."""

import contextlib
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from care_jax import logps
from care_jax.data import chat
from care_jax.data.chat import Tokenizer
from care_jax.data.questions import user_turn
from care_jax.distributed import is_writer, to_host
from care_jax.errors import UserError
from care_jax.evaluation.answers.choice_rows import EncodedItem, RowArrays, fill_rows, plan_rows
from care_jax.evaluation.answers.prompts import item_fields
from care_jax.evaluation.answers.responses import read_answers
from care_jax.evaluation.items import Item
from care_jax.evaluation.model import LoadedModel
from care_jax.models.arch import Params
from care_jax.models.decoder import Decoder, head_weight
from care_jax.models.sampling import spread_rows
from care_jax.sharding import row_parts
from care_jax.textfiles import write_lines


def score_file(
    opened: LoadedModel,
    items: Sequence[Item],
    task: str,
    out: pathlib.Path,
    chat_template: str = "none",
    mesh: Mesh | None = None,
) -> None:
    """Writes one line per item with the `logps` of its choices, unless `out` already holds the lines of all items."""
    if out.exists() and _is_complete(out, items, opened.name):
        return
    encoded = [encode_item(opened.tokenizer, item, chat_template) for item in items]
    scores = score_items(opened.model, opened.params, encoded, mesh)
    lines = []
    for item, values in zip(items, scores, strict=True):
        best = max(range(len(values)), key=values.__getitem__)
        answer = {"logps": values, "response": item.letters[best], "system": opened.name}
        lines.append({**item_fields(item, task), **answer})
    if is_writer():
        write_lines(out, lines)


def _is_complete(out: pathlib.Path, items: Sequence[Item], system: str) -> bool:
    written = [(answer.id, answer.question, answer.system) for answer in read_answers(str(out))]
    return written == [(item.id, item.question, system) for item in items]


def encode_item(tokenizer: Tokenizer, item: Item, template: str = "none", date: str | None = None) -> EncodedItem:
    """Returns the token ids of an item's prompt and choices.

    As in lm-evaluation-harness, prompt and choice are tokenized together, and the ids after those of the prompt are the
    choice. An item of standalone texts has no prompt: BOS, or EOS if there is no BOS, takes its place.
    """
    if item.standalone:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UserError(f"item {item.id}: a text without a prompt needs BOS or EOS, and the tokenizer has neither")
        texts = [_token_ids(tokenizer, choice) for choice in item.choices]
        return EncodedItem((start,), tuple(tuple(ids[1:] if ids[:1] == [start] else ids) for ids in texts))
    if template == "none":
        prompt = _token_ids(tokenizer, item.prompt)
        joined = [_token_ids(tokenizer, item.prompt + choice) for choice in item.choices]
    else:
        prompt = chat.encode_prompt(tokenizer, user_turn(item.prompt), template, date)
        # The answer starts right after the generation prompt, without the space that follows 'Answer:'.
        joined = [prompt + _token_ids(tokenizer, choice.lstrip(), special=False) for choice in item.choices]
    choices = [tuple(ids[len(prompt) :]) for ids in joined]
    if not all(choices):
        raise UserError(f"item {item.id}: a choice adds no token to the prompt")
    return EncodedItem(tuple(prompt), tuple(choices))


def _token_ids(tokenizer: Tokenizer, text: str, special: bool = True) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def score_items(
    model: Decoder, params: Params, items: Sequence[EncodedItem], mesh: Mesh | None = None
) -> list[list[float]]:
    """Returns the log-probability (nats, float32) of every choice given its prompt, summed over its tokens.

    Several prompts share a row, and each sees only itself, so that one program computes all batches. A choice of one
    token adds no token to the row: the last state of the prompt predicts it.
    """
    shards = row_parts(mesh)
    plan = plan_rows(items, model.arch.hidden, shards)
    scores: list[list[float]] = [[] for _ in items]
    for start in range(0, len(plan.rows), plan.batch_size):
        rows = plan.rows[start : start + plan.batch_size]
        arrays = fill_rows(rows, plan.batch_size, plan.width, plan.capacity)
        arrays = RowArrays(*(spread_rows(np.asarray(array), mesh) for array in arrays))
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            values = _target_logps(model, params, arrays)
        for row, row_values in zip(rows, np.asarray(to_host(values))):
            slot = 0
            for choice in (choice for block in row for choice in block.choices):
                end = slot + len(choice.tokens)
                scores[choice.item].append(float(row_values[slot:end].sum(dtype=np.float64)))
                slot = end
    return scores


@functools.partial(jax.jit, static_argnames=("model",))
def _target_logps(model: Decoder, params: Params, rows: RowArrays) -> Float[Array, "B C"]:
    """Returns log p(target | what the token at its place sees) of the C targets of each row."""
    places, targets = jnp.asarray(rows.places), jnp.asarray(rows.targets)
    hidden = model.apply({"params": params}, rows.tokens, rows.positions, rows.segments, rows.prompts, method="hidden")
    chosen = jnp.take_along_axis(jnp.asarray(hidden), places[:, :, None], axis=1)
    flat = logps.completion_logps(
        chosen.reshape(-1, chosen.shape[-1]),
        head_weight(model.arch, params).astype(chosen.dtype),
        targets.reshape(-1),
        soft_cap=model.arch.final_soft_cap,
    )
    return flat.reshape(targets.shape)
