"""Log-probabilities of texts behind a prompt, many prompts at once: each prompt stands once, its texts beside it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from care_jax import logps, sharding
from care_jax.data import chat
from care_jax.data.readers_rated import user_turn
from care_jax.data.sizes import round_up
from care_jax.errors import UserError
from care_jax.evaluation.items import Item
from care_jax.models.decoder import head_weight
from care_jax.models.export import to_host

_WIDTHS = (256, 1024)  # of a row at least; and, where no prompt is longer, at most
_TOKENS = 2048  # of a batch, about


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt's ids and those of the texts behind it."""

    prompt: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        # The last token of a text is only predicted, never read.
        return len(self.prompt) + sum(len(text) - 1 for text in self.texts)


def encode(tokenizer: Any, item: Item, template: str = "none", date: str | None = None) -> Asked:
    """The ids of an item's prompt and choices.

    As lm-evaluation-harness does: prompt and choice are tokenized together, and what is behind the prompt's own ids is
    the choice. An item scored whole has no prompt: BOS (or EOS, where there is none) stands before it.
    """
    if item.whole:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        texts = []
        for choice in item.choices:
            ids = _plain(tokenizer, choice)
            texts.append(tuple(ids[1:] if ids[:1] == [start] else ids))
        return Asked((int(start),), tuple(texts))
    if template == "none":
        prompt = _plain(tokenizer, item.prompt)
        wholes = [_plain(tokenizer, item.prompt + choice) for choice in item.choices]
    else:
        prompt = chat.encode_prompt(tokenizer, user_turn(item.prompt), template, date)
        # The answer begins right behind the generation prompt, without the space that follows 'Answer:'.
        wholes = [prompt + _bare(tokenizer, choice.lstrip()) for choice in item.choices]
    texts = [tuple(whole[len(prompt) :]) for whole in wholes]
    if not all(texts):
        raise UserError(f"item {item.id}: an option of no token behind its prompt")
    return Asked(tuple(prompt), tuple(texts))


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=True)["input_ids"])


def _bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@functools.partial(jax.jit, static_argnames=("model",))
def _run(
    model: Any,
    params: Any,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    prompts: Int[Array, "B T"],
    places: Int[Array, "B C"],
    targets: Int[Array, "B C"],
) -> Float[Array, "B C"]:
    """log p(target | what the token at `place` sees), of C targets a row."""
    hidden = model.apply({"params": params}, tokens, positions, segments, prompts, method="hidden")
    chosen = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    flat = logps.completion_logps(
        chosen.reshape(-1, chosen.shape[-1]),
        head_weight(model.arch, params).astype(chosen.dtype),
        targets.reshape(-1),
        soft_cap=model.arch.final_soft_cap,
    )
    return flat.reshape(targets.shape)


def score(model: Any, params: Any, asked: Sequence[Asked], mesh: Mesh | None = None) -> list[list[float]]:
    """The summed log-probability of every text given its prompt (nats, float32), in the order given.

    Several prompts share a row, seeing only themselves, so that one program serves all. A text of one token costs no
    token of its own: the prompt's last state predicts it.
    """
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    width = _width(asked, model.arch.hidden)
    rows = _pack(asked, width)
    # As many rows in every batch: the last one would else be half padding.
    batches = max(1, round(len(rows) * width / _TOKENS))
    size = round_up(max(1, -(-len(rows) // batches)), parts)
    capacity = round_up(max((sum(_targets(asked[number]) for number in row) for row in rows), default=1), 8)
    out: list[list[float]] = [[] for _ in asked]
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        arrays = _fill([[asked[number] for number in row] for row in some], size, width, capacity)
        if mesh is None:
            found = _run(model, params, *(jnp.asarray(x) for x in arrays))
        else:
            with jax.set_mesh(mesh):
                found = _run(model, params, *(_spread(x, mesh) for x in arrays))
        for row, values in zip(some, np.asarray(to_host(found))):
            slot = 0
            for number in row:
                for text in asked[number].texts:
                    out[number].append(float(values[slot : slot + len(text)].sum(dtype=np.float64)))
                    slot += len(text)
    return out


def _targets(one: Asked) -> int:
    return sum(len(text) for text in one.texts)


def _spread(x: np.ndarray, mesh: Mesh) -> jax.Array:
    placed = sharding.sharding(mesh, ("rows", None), x.shape, "evaluate: rows")
    return jax.make_array_from_callback(x.shape, placed, lambda index: x[index])


def _width(asked: Sequence[Asked], hidden: int) -> int:
    """The row length that costs least: longer rows are filled better, and cost more attention (4 width x hidden
    operations a slot and layer beside about 24 hidden^2).
    """
    least = round_up(max([_WIDTHS[0], *(one.length for one in asked)]), 64)
    some = asked[:: max(1, len(asked) // 256)]  # enough to tell

    def cost(width: int) -> float:
        return len(_pack(some, width)) * width * (1 + width / (6 * hidden))

    return min(range(least, max(least, _WIDTHS[1]) + 1, 64), key=cost)


def _pack(asked: Sequence[Asked], width: int) -> list[list[int]]:
    """Rows of prompts (their numbers) that fit into `width`: first fit, longest first."""
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(asked)), key=lambda number: -asked[number].length):
        need = asked[number].length
        place = next((place for place, room in enumerate(left) if room >= need), None)
        if place is None:
            rows.append([])
            left.append(width)
            place = len(rows) - 1
        rows[place].append(number)
        left[place] -= need
    return rows


def _fill(rows: Sequence[Sequence[Asked]], size: int, width: int, capacity: int) -> tuple[np.ndarray, ...]:
    """tokens, positions, segments, prompts [size, width]; places, targets [size, capacity]. Segment 0 is padding."""
    tokens, positions, segments, prompts = (np.zeros((size, width), np.int32) for _ in range(4))
    places, targets = (np.zeros((size, capacity), np.int32) for _ in range(2))
    for row, several in enumerate(rows):
        at = slot = 0
        segment = 1
        for one in several:
            end = at + len(one.prompt)
            mine = segment
            tokens[row, at:end], positions[row, at:end] = one.prompt, np.arange(len(one.prompt))
            segments[row, at:end], prompts[row, at:end] = mine, mine
            at = end
            for text in one.texts:
                segment += 1
                rest = len(text) - 1
                tokens[row, at : at + rest] = text[:-1]
                positions[row, at : at + rest] = len(one.prompt) + np.arange(rest)
                segments[row, at : at + rest], prompts[row, at : at + rest] = segment, mine
                places[row, slot : slot + len(text)] = [end - 1, *range(at, at + rest)]
                targets[row, slot : slot + len(text)] = text
                at, slot = at + rest, slot + len(text)
            segment += 1
    return tokens, positions, segments, prompts, places, targets
