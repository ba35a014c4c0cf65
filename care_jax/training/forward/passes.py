"""Passes without a gradient over any sequences, for the reference and the evaluation: one program, compiled once."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from care_jax import distributed, hardware, sharding
from care_jax.data import pipeline
from care_jax.data.corpus import Corpus, SequenceId
from care_jax.data.packing.batch import Batch, BatchShape
from care_jax.data.packing.plans import StepPlan
from care_jax.distributed import is_writer
from care_jax.errors import UserError
from care_jax.models.decoder import Decoder
from care_jax.stopping import StopSignal
from care_jax.textfiles import ProgressBar, progress_bar
from care_jax.training import placement
from care_jax.training.errors import out_of_memory
from care_jax.training.forward.cache import ReferenceCache, digest, fill_cache
from care_jax.training.step import Variables, make_logps

_MULTIPLES = (8, 4, 2)  # of the rows of `shape`: far more fit than in a training step


class ForwardPass:
    """Lays sequences out in microbatches, and runs one microbatch per call. Policy and reference run the same program.

    shape: sized for single responses, so that any sequences fit. The first pass multiplies its rows by 8, 4 or 2 if
    the devices have the memory, and later passes keep them; a backend that does not report its memory (the CPU) keeps
    the rows of `shape`. reserved: bytes per device that are or will be in use besides the arguments of the pass.
    program: the jitted forward program of `make_logps`.
    """

    def __init__(
        self, model: Decoder, corpus: Corpus, shape: BatchShape, mesh: Mesh, stop: StopSignal, reserved: int = 0
    ):
        check_token_ids(corpus, model.arch.vocab_size)
        self._corpus, self._mesh, self._stop, self._reserved = corpus, mesh, stop, reserved
        self._shape = dataclasses.replace(shape, microbatches=1)
        self._plans: dict[tuple[SequenceId, ...], StepPlan] = {}
        self.program = jax.jit(make_logps(model), out_shardings=sharding.replicated(mesh))

    # ---- What is run

    def run(self, sequences: Sequence[SequenceId], variables: Variables, name: str = "evaluation") -> np.ndarray:
        """Returns logps [len(sequences)] float32. name: title of the progress bar."""
        plan = self._plan(sequences, variables)
        logps = np.zeros(len(sequences), np.float32)
        for members, values in self._run_ahead(plan, variables, name):
            logps[members] = np.asarray(values)[plan.responses.slot[members]]
        return logps

    def fill(self, cache: ReferenceCache, sequences: Sequence[SequenceId], variables: Variables) -> int:
        """Runs what the cache lacks, placed as in the plan of all sequences; returns how many microbatches were run."""
        plan = self._plan(sequences, variables)
        members = _members(plan)

        def run(number: int) -> tuple[jax.Array, np.ndarray]:
            return self._dispatch(plan, number, variables), plan.responses.slot[members[number]]

        microbatches = [positions.tolist() for positions in members]
        with _progress_bar(len(members), "reference") as bar:
            return fill_cache(cache, self.digests(sequences), microbatches, run, write=is_writer(), progress=bar.update)

    def first_microbatch(self, sequences: Sequence[SequenceId], variables: Variables) -> tuple[np.ndarray, np.ndarray]:
        """Runs the first microbatch of a pass again; returns (positions in `sequences`, their logps)."""
        plan = self._plan(sequences, variables)
        members = _members(plan)[0]
        return members, np.asarray(self._dispatch(plan, 0, variables))[plan.responses.slot[members]]

    def digests(self, sequences: Sequence[SequenceId]) -> list[bytes]:
        """Returns a digest of each sequence's tokens."""
        return [digest(*self._corpus.sequence(*sequence)) for sequence in sequences]

    # ---- One microbatch

    def _run_ahead(self, plan: StepPlan, variables: Variables, name: str) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """Yields every microbatch's members and logps, while a few more are dispatched already."""
        waiting: list[tuple[np.ndarray, jax.Array]] = []
        members = _members(plan)
        with _progress_bar(len(members), name) as bar:
            for number in range(len(members)):
                waiting.append((members[number], self._dispatch(plan, number, variables)))
                if len(waiting) > 2:
                    yield waiting.pop(0)
                bar.update(1)
        yield from waiting

    def _dispatch(self, plan: StepPlan, number: int, variables: Variables) -> jax.Array:
        """Starts microbatch `number` and returns its logps [S]. Raises Interrupted after a signal."""
        self._stop.check("in a pass without a gradient")
        return self.program(variables, self._batch(plan, number))[0]

    def _batch(self, plan: StepPlan, number: int) -> Batch:
        """Returns microbatch `number` on the devices; each process fills the rows of its devices."""
        rows = placement.rows_of_this_process(self._mesh, plan.shape.rows)
        local = pipeline.fill(plan, self._corpus, rows, microbatches=(number, number + 1))
        return placement.to_devices(local, placement.batch_shardings(local, self._mesh), plan.shape.rows)

    # ---- Plans

    def _plan(self, sequences: Sequence[SequenceId], variables: Variables) -> StepPlan:
        key = tuple(sequences)
        if key not in self._plans:
            limit = None if self._plans else memory_limit()
            plan = None if limit is None else self._largest_plan(limit - self._reserved, sequences, variables)
            plan = plan or pipeline.plan_responses(self._corpus, sequences, self._shape)
            self._shape, self._plans[key] = plan.shape, plan
        return self._plans[key]

    def _largest_plan(self, limit: int, sequences: Sequence[SequenceId], variables: Variables) -> StepPlan | None:
        """Plans the sequences with the most rows that fit into `limit` bytes per device, of which they fill more than
        half; None if no more than the rows of `shape` fit.
        """
        for times in _MULTIPLES:
            larger = {name: times * getattr(self._shape, name) for name in ("rows", "responses", "completion_tokens")}
            plan = pipeline.plan_responses(self._corpus, sequences, dataclasses.replace(self._shape, **larger))
            filled = plan.tokens > plan.shape.rows * plan.shape.row_length // 2
            if filled and not distributed.anywhere(not self._fits(plan, limit, variables)):
                return plan
        return None

    def _fits(self, plan: StepPlan, limit: int, variables: Variables) -> bool:
        """Returns whether the program and its arguments need at most `limit` bytes per device, as the compiler plans
        it. The pass itself then runs the program that was compiled here.
        """
        try:
            compiled = self.program.lower(variables, self._batch(plan, 0)).compile()
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        sizes = compiled.memory_analysis()
        return sizes is not None and sizes.argument_size_in_bytes + placement.program_bytes(compiled) <= limit


def memory_limit() -> int | None:
    """Returns the bytes of a device's memory that a run may use; None if the backend does not report its memory."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(hardware.MEMORY_FRACTION * limit)


def _members(plan: StepPlan) -> list[np.ndarray]:
    """Returns, for each microbatch, the positions of its sequences."""
    order = np.argsort(plan.responses.microbatch, kind="stable")
    return np.split(order, np.searchsorted(plan.responses.microbatch[order], np.arange(1, plan.count)))


def _progress_bar(total: int, name: str) -> ProgressBar:
    return progress_bar(total, name, "microbatch", hidden=not is_writer(), temporary=True)


def check_token_ids(corpus: Corpus, vocab_size: int) -> None:
    """Raises UserError naming a question with an id for which the model has no embedding: a gather would take another.

    Token caches are not read for it, since their ids come from a tokenizer.
    """
    for part, tokens in (("prompt", corpus.prompts), ("completion", corpus.completions)):
        bad = np.flatnonzero((tokens.flat < 0) | (tokens.flat >= vocab_size))
        if not len(bad):
            continue
        inside = (tokens.starts <= bad[0]) & (bad[0] < tokens.starts + tokens.lengths)
        if tokens.places is not None:
            inside &= tokens.places[:, 0] < 0
        number = int(np.argmax(inside))
        question = number
        if part == "completion":
            question = int(np.searchsorted(corpus.first_response, number, side="right")) - 1
        row = corpus.questions[question].responses[0].row_number
        raise UserError(
            f"row {row} ({corpus.key(question)!r:.60}): token id {int(tokens.flat[bad[0]])} in the {part}; the model "
            f"has 0 to {vocab_size - 1} (config.json: vocab_size)"
        )
