"""Reference log-probabilities: computed once before training, cached in the run directory by content.

The cache is a folder of parts, each a safetensors file {digests [n, 16] uint8, logps [n] float32} that is written under
another name and renamed, so that a pass that was killed resumes where it stopped. The key of the cache lists what the
logps depend on: weights, dtype and attention.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from care_jax import distributed
from care_jax.errors import UserError
from care_jax.models.arch import Params
from care_jax.textfiles import JsonObject

Digest = bytes
_FETCHED_AT_ONCE = 32  # microbatches


def digest(prompt_ids: Int[np.ndarray, " p"], completion_ids: Int[np.ndarray, " c"]) -> Digest:
    """Returns 16 bytes that identify the tokens of a prompt and of a completion (blake2b)."""
    prompt = np.ascontiguousarray(prompt_ids, "<i4")
    content = hashlib.blake2b(len(prompt).to_bytes(4, "little"), digest_size=16)
    content.update(prompt.tobytes())
    content.update(np.ascontiguousarray(completion_ids, "<i4").tobytes())
    return content.digest()


def fingerprint(params: Params) -> str:
    """Returns a hash of a tree's values that depends on no mesh: exact integer sums of the bits of each leaf, mixed
    with their positions.
    """

    def leaf(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
        position = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        mixed = (bits ^ (position * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
        return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)])

    @jax.jit
    def leaves(tree: Params) -> jax.Array:
        return jnp.stack([leaf(x) for x in jax.tree.leaves(tree)])

    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    shapes = [f"{x.dtype}{x.shape}" for x in jax.tree.leaves(params)]
    sums = np.asarray(leaves(params)).tolist()
    return hashlib.blake2b(json.dumps([names, shapes, sums]).encode(), digest_size=16).hexdigest()


class ReferenceCache:
    """Reference logps by the digest of their tokens. key: what they depend on besides the tokens.

    Each key has a folder of its own below `folder`.
    """

    def __init__(self, folder: pathlib.Path, key: JsonObject):
        self.key = json.dumps(key, sort_keys=True)
        self.folder = folder / hashlib.sha256(self.key.encode()).hexdigest()[:12]
        self._logps: dict[Digest, float] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._parts():
            self._remember(self._read(path))
        # All processes must miss the same sequences, before one of them adds some.
        distributed.barrier("reference cache read")

    def __contains__(self, sequence: Digest) -> bool:
        return sequence in self._logps

    def values(self, digests: Sequence[Digest]) -> Float32[np.ndarray, " n"]:
        """Returns the logps of sequences that the cache contains."""
        return np.asarray([self._logps[sequence] for sequence in digests], np.float32)

    def add(self, digests: Sequence[Digest], logps: np.ndarray, *, write: bool) -> None:
        """Adds one part. write: whether to write it to disk too, as only one of several processes does."""
        self._remember(zip(digests, (float(value) for value in logps)))
        if not write:
            return
        table = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
        values = np.asarray(logps, np.float32)
        # The next number, not the count: if a part was deleted, another one would be overwritten.
        number = max((int(part.stem.removeprefix("part-")) for part in self._parts()), default=-1) + 1
        path = self.folder / f"part-{number:06d}.safetensors"
        partial = path.with_suffix(".partial")
        save_file({"digests": table, "logps": values}, partial, {"key": self.key, "sha256": _sha256(table, values)})
        partial.rename(path)

    def _remember(self, logps: Iterable[tuple[Digest, float]]) -> None:
        """Keeps the first number of each sequence, also after a resume. A pass may run the same tokens twice (two equal
        questions, two completions cut to the same beginning), in rows that round differently.
        """
        for sequence, value in logps:
            self._logps.setdefault(sequence, value)

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("part-[0-9]*.safetensors"))

    def _read(self, path: pathlib.Path) -> Iterator[tuple[Digest, float]]:
        again = f"delete {self.folder} to compute it again"
        try:
            with safe_open(path, "np") as file:
                stored = file.metadata() or {}
                digests, logps = file.get_tensor("digests"), file.get_tensor("logps")
        except PermissionError as error:
            raise UserError(
                f"{path}: this reference cache cannot be read ({error.strerror}); make it readable"
            ) from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged reference cache ({error}); {again}") from error
        if stored.get("sha256") != _sha256(digests, logps):
            raise UserError(f"{path}: damaged reference cache (checksum differs); {again}")
        if stored.get("key") != self.key:
            raise UserError(
                f"{path}: this reference cache was made for {stored.get('key')}, the run needs {self.key}; {again}"
            )
        return zip((row.tobytes() for row in digests), (float(value) for value in logps))


def _sha256(digests: UInt8[np.ndarray, "n 16"], logps: np.ndarray) -> str:
    return hashlib.sha256(digests.tobytes() + np.asarray(logps, "<f4").tobytes()).hexdigest()


def fill_cache(
    cache: ReferenceCache,
    digests: Sequence[Digest],
    microbatches: Sequence[Sequence[int]],
    run: Callable[[int], tuple[jax.Array, np.ndarray]],
    *,
    write: bool,
    progress: Callable[[int], object] = lambda count: None,
) -> int:
    """Runs every microbatch of which the cache lacks something; returns how many were run.

    microbatches: the sequences (indices into digests) of each. They are those of the whole pass, also after a resume,
    so that the numbers are the same bit for bit. run(m) -> (logps [S] on the device, the slots of the sequences).
    """
    pending: list[tuple[Sequence[int], jax.Array, np.ndarray]] = []
    ran = 0

    def flush() -> None:
        if pending:
            logps = np.concatenate([np.asarray(values)[slots] for _, values, slots in pending])
            cache.add([digests[index] for indices, _, _ in pending for index in indices], logps, write=write)
            pending.clear()

    try:
        for number, indices in enumerate(microbatches):
            if any(digests[index] not in cache for index in indices):
                pending.append((indices, *run(number)))
                ran += 1
                if len(pending) > 2:  # two are running: the device never waits, and the progress shown is true
                    jax.block_until_ready(pending[-3][1])
            progress(1)
            if len(pending) == _FETCHED_AT_ONCE:
                flush()
    finally:  # keeps what was run, also if a signal ends the pass
        flush()
    return ran
