"""Log-probabilities of texts behind a prompt, many prompts at once: each prompt stands once, its texts beside it.

Where prompts of one-token texts (option letters) begin alike, as behind the same examples, that beginning stands once
too, and what is left of each prompt beside it.
"""

import collections
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
from care_jax.data.packing.capacities import round_up
from care_jax.data.readers.rated import user_turn
from care_jax.distributed import to_host
from care_jax.errors import UserError
from care_jax.evaluation.items import Item
from care_jax.models.decoder import head_weight

_WIDTHS = (256, 1024)  # of a row at least; and, where no prompt is longer, at most
_SHARING = 4  # rows may be as long as so many shared beginnings
_LEAST_SHARED = 32  # tokens of a beginning that is worth it
_TOKENS = 2048  # of a batch, about


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt's ids and those of the texts behind it."""

    prompt: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Bundle:
    """What stands together in a row: a stem, branches that each see it and themselves, and what is asked of them.

    texts: (number of the prompt, targets, the place that predicts each: (branch, offset), branch -1 being the stem).
    """

    stem: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[int, tuple[int, ...], tuple[tuple[int, int], ...]], ...]

    @property
    def length(self) -> int:
        return len(self.stem) + sum(map(len, self.branches))

    @property
    def targets(self) -> int:
        return sum(len(targets) for _, targets, _ in self.texts)


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
    families = _families(asked)
    width = _width(asked, families, model.arch.hidden)
    rows = _pack(_bundles(asked, families, width), width)
    # As many rows in every batch: the last one would else be half padding.
    batches = max(1, round(len(rows) * width / _TOKENS))
    size = round_up(max(1, -(-len(rows) // batches)), parts)
    capacity = round_up(max((sum(bundle.targets for bundle in row) for row in rows), default=1), 8)
    out: list[list[float]] = [[] for _ in asked]
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        arrays = _fill(some, size, width, capacity)
        if mesh is None:
            found = _run(model, params, *(jnp.asarray(x) for x in arrays))
        else:
            with jax.set_mesh(mesh):
                found = _run(model, params, *(_spread(x, mesh) for x in arrays))
        for row, values in zip(some, np.asarray(to_host(found))):
            slot = 0
            for number, targets, _ in (text for bundle in row for text in bundle.texts):
                out[number].append(float(values[slot : slot + len(targets)].sum(dtype=np.float64)))
                slot += len(targets)
    return out


def _spread(x: np.ndarray, mesh: Mesh) -> jax.Array:
    placed = sharding.sharding(mesh, ("rows", None), x.shape, "evaluate: rows")
    return jax.make_array_from_callback(x.shape, placed, lambda index: x[index])


def _families(asked: Sequence[Asked]) -> list[tuple[list[int], int]]:
    """(numbers of prompts, tokens they share) of those that begin alike for at least half of their length; alone: 0."""
    alone = [number for number, one in enumerate(asked) if any(len(text) > 1 for text in one.texts)]
    families: list[tuple[list[int], int]] = [([number], 0) for number in alone]
    rest = sorted(set(range(len(asked))) - set(alone), key=lambda number: asked[number].prompt)
    held: list[int] = []
    shared = 0

    def close() -> None:
        if held:
            families.append((held, shared if len(held) > 1 else 0))

    for number in rest:
        prompt = asked[number].prompt
        if held:
            # Every branch keeps a token: the one that predicts.
            most = min(shared, len(prompt) - 1)
            alike = next((at for at in range(most) if prompt[at] != asked[held[0]].prompt[at]), most)
            if alike >= max(_LEAST_SHARED, shared / 2, len(prompt) / 2):
                held.append(number)
                shared = alike
                continue
        close()
        held, shared = [number], len(prompt) - 1
    close()
    return families


def _bundles(asked: Sequence[Asked], families: Sequence[tuple[list[int], int]], width: int) -> list[_Bundle]:
    """Each family as bundles that fit into `width`; a prompt alone is a stem, its texts' tokens branches.

    The last token of a text is only predicted, never read.
    """
    bundles = []
    for numbers, shared in families:
        if not shared:
            (number,) = numbers
            one, end = asked[number], (-1, len(asked[number].prompt) - 1)
            texts = tuple(
                (number, text, (end, *((branch, offset) for offset in range(len(text) - 1))))
                for branch, text in enumerate(one.texts)
            )
            bundles.append(_Bundle(one.prompt, tuple(text[:-1] for text in one.texts), texts))
            continue
        stem, waiting = asked[numbers[0]].prompt[:shared], collections.deque(numbers)
        while waiting:
            branches: list[tuple[int, ...]] = []
            held: list[tuple[int, tuple[int, ...], tuple[tuple[int, int], ...]]] = []
            room = width - shared
            while waiting and (not branches or len(asked[waiting[0]].prompt) - shared <= room):
                number = waiting.popleft()
                branch = asked[number].prompt[shared:]
                end = (len(branches), len(branch) - 1)
                held += [(number, text, (end,)) for text in asked[number].texts]
                branches.append(branch)
                room -= len(branch)
            bundles.append(_Bundle(stem, tuple(branches), tuple(held)))
    return bundles


def _width(asked: Sequence[Asked], families: Sequence[tuple[list[int], int]], hidden: int) -> int:
    """The row length that costs least: longer rows are filled better, and cost more attention (4 width x hidden
    operations a slot and layer beside about 24 hidden^2).
    """
    longest = max((bundle.length for bundle in _bundles(asked, families, 0)), default=0)
    least = round_up(max(_WIDTHS[0], longest), 64)
    most = max(least, _WIDTHS[1], _SHARING * max((shared for _, shared in families), default=0))
    step = max(1, len(families) // 256)
    some = [(numbers[:256], shared) for numbers, shared in families[::step]]  # enough to tell

    def cost(width: int) -> float:
        return len(_pack(_bundles(asked, some, width), width)) * width * (1 + width / (6 * hidden))

    return min((*range(least, min(most, _WIDTHS[1]) + 1, 64), *range(max(least, _WIDTHS[1]), most + 1, 256)), key=cost)


def _pack(bundles: Sequence[_Bundle], width: int) -> list[list[_Bundle]]:
    """Rows of bundles that fit into `width`: longest first, each where it leaves the least room."""
    rows: list[list[_Bundle]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]  # numbers of rows, by the room they have
    for bundle in sorted(bundles, key=lambda bundle: -bundle.length):
        room = next((room for room in range(bundle.length, width + 1) if with_room[room]), None)
        if room is None:
            room, place = width, len(rows)
            rows.append([])
        else:
            place = with_room[room].pop()
        rows[place].append(bundle)
        with_room[room - bundle.length].append(place)
    return rows


def _fill(rows: Sequence[Sequence[_Bundle]], size: int, width: int, capacity: int) -> tuple[np.ndarray, ...]:
    """tokens, positions, segments, prompts [size, width]; places, targets [size, capacity]. Segment 0 is padding."""
    tokens, positions, segments, prompts = (np.zeros((size, width), np.int32) for _ in range(4))
    places, targets = (np.zeros((size, capacity), np.int32) for _ in range(2))
    for row, bundles in enumerate(rows):
        at = slot = segment = 0
        for bundle in bundles:
            starts, stem = [], segment + 1
            for first, ids in ((0, bundle.stem), *((len(bundle.stem), branch) for branch in bundle.branches)):
                segment += 1
                end = at + len(ids)
                tokens[row, at:end], positions[row, at:end] = ids, first + np.arange(len(ids))
                segments[row, at:end], prompts[row, at:end] = segment, stem
                starts.append(at)
                at = end
            for _, text, predicting in bundle.texts:
                end = slot + len(text)
                places[row, slot:end] = [starts[branch + 1] + offset for branch, offset in predicting]
                targets[row, slot:end] = text
                slot = end
    return tokens, positions, segments, prompts, places, targets
