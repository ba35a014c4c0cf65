"""Reference log-probabilities: computed once before training, cached in the run directory by content.

The cache is a folder of parts, each a safetensors file {digests [n, 16] uint8, logps [n] float32} written aside and
renamed, so that a pass that was killed goes on where it stopped. Its key names what the numbers depend on.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from care_jax import distributed
from care_jax.errors import UserError

Digest = bytes


def digest(prompt_ids: np.ndarray, completion_ids: np.ndarray) -> Digest:
    """16 bytes that name a prompt's and a completion's tokens (blake2b)."""
    prompt = np.ascontiguousarray(prompt_ids, "<i4")
    found = hashlib.blake2b(len(prompt).to_bytes(4, "little"), digest_size=16)
    found.update(prompt.tobytes())
    found.update(np.ascontiguousarray(completion_ids, "<i4").tobytes())
    return found.digest()


def fingerprint(params: Any) -> str:
    """A hash of a tree's values that no mesh changes: exact integer sums of the bits, weighted by their places."""

    def leaf(x):
        bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        mixed = (bits ^ (place * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
        return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)])

    @jax.jit
    def leaves(tree):
        return jnp.stack([leaf(x) for x in jax.tree.leaves(tree)])

    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    shapes = [f"{x.dtype}{x.shape}" for x in jax.tree.leaves(params)]
    sums = np.asarray(leaves(params)).tolist()
    return hashlib.blake2b(json.dumps([names, shapes, sums]).encode(), digest_size=16).hexdigest()


class ReferenceCache:
    """Reference logps by content. `key`: what they depend on beside the tokens (weights, dtype, attention)."""

    def __init__(self, folder: pathlib.Path, key: dict[str, Any]):
        self.key = json.dumps(key, sort_keys=True)
        # A folder for each key: what another model left is no business of this one.
        self.folder = folder / hashlib.sha256(self.key.encode()).hexdigest()[:12]
        self._found: dict[Digest, float] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._parts():
            self._remember(self._read(path))
        distributed.barrier("reference cache read")  # all processes must miss the same, before one of them adds to it

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("part-[0-9]*.safetensors"))

    def _read(self, path: pathlib.Path) -> Iterator[tuple[Digest, float]]:
        try:
            with safe_open(path, "np") as file:
                stored = file.metadata() or {}
                digests, logps = file.get_tensor("digests"), file.get_tensor("logps")
        except PermissionError as error:
            raise UserError(
                f"{path}: this reference cache cannot be read ({error.strerror}); make it readable"
            ) from None
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: damaged reference cache ({error}); delete {self.folder} to compute it anew"
            ) from error
        if stored.get("sha256") != _sha256(digests, logps):
            raise UserError(
                f"{path}: damaged reference cache (checksum differs); delete {self.folder} to compute it anew"
            )
        if stored.get("key") != self.key:
            raise UserError(
                f"{path}: this reference cache was made for {stored.get('key')}, the run needs {self.key}; "
                f"delete {self.folder} to compute it anew"
            )
        return zip((row.tobytes() for row in digests), (float(value) for value in logps))

    def _remember(self, found: Iterable[tuple[Digest, float]]) -> None:
        """The same tokens may stand twice in a pass (two questions alike, two completions cut to the same beginning),
        in rows that round otherwise: the first stays, in a pass that was killed too.
        """
        for one, value in found:
            self._found.setdefault(one, value)

    def __contains__(self, wanted: Digest) -> bool:
        return wanted in self._found

    def add(self, digests: Sequence[Digest], logps: np.ndarray, *, write: bool) -> None:
        """Remembers one part; only the writing process of several puts it on disk."""
        self._remember(zip(digests, (float(value) for value in logps)))
        if not write:
            return
        table = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
        values = np.asarray(logps, np.float32)
        # Behind the last one: where a part was deleted, counting them would write over another.
        number = max((int(part.stem.removeprefix("part-")) for part in self._parts()), default=-1) + 1
        path = self.folder / f"part-{number:06d}.safetensors"
        aside = path.with_suffix(".partial")
        save_file({"digests": table, "logps": values}, aside, {"key": self.key, "sha256": _sha256(table, values)})
        aside.rename(path)

    def values(self, digests: Sequence[Digest]) -> np.ndarray:
        """logps [len(digests)] float32."""
        return np.asarray([self._found[one] for one in digests], np.float32)


def _sha256(digests: np.ndarray, logps: np.ndarray) -> str:
    return hashlib.sha256(digests.tobytes() + np.asarray(logps, "<f4").tobytes()).hexdigest()


def fill_cache(
    cache: ReferenceCache,
    digests: Sequence[Digest],
    microbatches: Sequence[Sequence[int]],
    run: Callable[[int], tuple[jax.Array, np.ndarray]],
    *,
    write: bool,
    progress: Callable[[int], Any] = lambda count: None,
) -> int:
    """Runs every microbatch that the cache lacks something of; returns how many were run.

    microbatches: the sequences (indices into digests) of each; the layout is that of the whole pass even where a killed
    one goes on, so that the numbers are the same to the bit. run(m) -> (logps [S] on the device, its slots).
    """
    held: list[tuple[Sequence[int], jax.Array, np.ndarray]] = []
    done = 0

    def flush() -> None:
        # Fetched many microbatches late, so that the device never waits for the host.
        if held:
            logps = np.concatenate([np.asarray(values)[slots] for _, values, slots in held])
            cache.add([digests[index] for indices, _, _ in held for index in indices], logps, write=write)
            held.clear()

    try:
        for number, indices in enumerate(microbatches):
            if any(digests[index] not in cache for index in indices):
                held.append((indices, *run(number)))
                done += 1
                if len(held) > 2:  # two ahead: the device never waits, and progress tells the truth
                    jax.block_until_ready(held[-3][1])
            progress(1)
            if len(held) == 32:
                flush()
    finally:  # what was run is kept, also where a signal ends the pass
        flush()
    return done
