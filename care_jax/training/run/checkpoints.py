"""Checkpoints by Orbax: the state, its step (which is the data position) and the configuration in one atomic save."""

import dataclasses
import functools
import json
import logging
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.future import ChainedFuture

from care_jax import distributed
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.training.errors import RunFailed, machine_error, process_lost
from care_jax.training.run import checksums
from care_jax.training.run.bucket import StoragePath, is_remote, move, path_of, remove
from care_jax.training.step import State

# What a disk, a file system or another process does to a save. The save is told of and tried again at the next
# interval; the last one of a run must succeed.
_SAVE_FAILURES = (OSError, ValueError, RuntimeError)
_DAMAGED, _REMOVED = ".damaged", ".removed"


class _Summed(ocp.CompositeCheckpointHandler):
    """Writes the sums of what a save consists of before it commits: each process its own, the first the rest."""

    async def async_save(self, directory: Any, args: Any) -> Any:
        futures = await super().async_save(directory, args)

        def written() -> None:
            checksums.write_part(path_of(directory), jax.process_index())

        return [ChainedFuture(futures or [], written)]

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        checksums.seal(path_of(directory))


def _not_a_failed_save(record: logging.LogRecord) -> bool:
    """Orbax logs the traceback of a save that failed; `Checkpoints` says it in a sentence, and what it means."""
    return not (record.levelno >= logging.ERROR and record.module in ("async_checkpointer", "future"))


def _no_late_callbacks(before: Callable[[Any], Any], unraisable: Any) -> None:
    """`sys.unraisablehook`: the writes of a save that failed go on, and each that ends finds the loop of that save
    closed. What can be said of it is said already, by `Checkpoints`.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        before(unraisable)


def _say_failures_once() -> None:
    """For the life of the process: late callbacks come after the last save, too."""
    logging.getLogger("absl").addFilter(_not_a_failed_save)  # the same function twice is one filter
    if getattr(sys.unraisablehook, "func", None) is not _no_late_callbacks:
        sys.unraisablehook = functools.partial(_no_late_callbacks, sys.unraisablehook)


@ocp.args.register_with_handler(_Summed, for_save=True, for_restore=True)
class _SummedArgs(ocp.args.Composite):
    pass


class Checkpoints:
    """Saves asynchronously to `folder`; keeps the newest `keep` and, with `best`, the one best by that metric.

    best: a metric of the evaluation; of a loss the lowest is best, of all else the highest. read_only: of a run that
    may be going on elsewhere, in whose folder nothing is changed.
    """

    def __init__(self, folder: StoragePath, keep: int = 1, best: str | None = None, *, read_only: bool = False):
        self.folder: StoragePath = folder.absolute() if isinstance(folder, pathlib.Path) else folder
        self._keep, self._best, self._read_only = keep, best, read_only
        self._good: int | None = None  # the newest that is known to be sound
        self._looked = False
        self._pending: tuple[int, float] | None = None
        self._save_seconds = 0.0
        self._last_failure: str | None = None
        self._saver: Any = None
        self._look_after = 0.0
        # gcsfs lets through whatever HTTP and credentials raise.
        self._failures = (Exception,) if is_remote(folder) else _SAVE_FAILURES
        if not read_only:
            if not is_remote(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            self._clear()
            _say_failures_once()
            # Directories are made at once: where that fails, it fails here and not in a thread.
            options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
            handler = _Summed(
                state=ocp.StandardCheckpointHandler(),
                meta=ocp.JsonCheckpointHandler(),
                composite_options=ocp.CompositeOptions(async_options=options),
            )
            self._saver = ocp.AsyncCheckpointer(handler, async_options=options)

    # ---- What is there

    def steps(self) -> list[int]:
        """The committed checkpoints, ascending, sound or not."""
        return sorted(int(path.name) for path in self._below() if path.name.isdigit() and _committed(path))

    def _below(self) -> list[StoragePath]:
        return list(self.folder.iterdir()) if self.folder.exists() else []

    def latest(self) -> int | None:
        """The newest checkpoint whose files are all as they were written; None where there is none at all.

        Damaged ones above it are named and, unless read only, set aside. Raises UserError where all are damaged, or
        where one cannot be read.
        """
        if self._looked:
            return self._good
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            found = self._damage(step)
            if found is None:
                self._good = step
                break
            damaged[step] = found
        shown = "; ".join(f"step {step}: {found}" for step, found in damaged.items())
        if damaged and self._good is None:
            raise UserError(
                f"{self.folder}: no checkpoint is sound ({shown}). Delete the folder to start anew, or choose another "
                "output_dir"
            )
        for step in damaged:
            kept = "" if self._read_only else f"; the damaged one is now {self._set_aside(step)}"
            say(
                f"warning: the checkpoint of step {step} is damaged: {damaged[step]}. "
                f"That of step {self._good} is used instead{kept}"
            )
        self._looked = True
        return self._good

    def _damage(self, step: int) -> str | None:
        """What is wrong with one, as all processes find together, each in its share of the files."""
        try:
            found = checksums.damage(self.folder / str(step), (jax.process_index(), jax.process_count()))
        except PermissionError as error:
            raise UserError(
                f"{error.filename}: the checkpoint of step {step} cannot be read ({error.strerror}). Make it readable; "
                f"or move {self.folder / str(step)} away, and the one before is used"
            ) from None
        return found or ("another process found it so" if distributed.anywhere(found is not None) else None)

    def _set_aside(self, step: int) -> StoragePath:
        number, target = 1, self.folder / f"{step}{_DAMAGED}"
        while target.exists():
            number, target = number + 1, self.folder / f"{step}{_DAMAGED}{number}"
        if is_writer():
            move(self.folder / str(step), target)
        return target

    def resume_hint(self) -> str:
        """From where a run that ends now goes on."""
        good = self._good
        if self._pending is not None and _committed(self.folder / str(self._pending[0])):
            good = self._pending[0]  # written, and not yet looked at
        if good is None:
            return "no checkpoint was saved yet; the same command starts again"
        return f"the last good checkpoint is that of step {good}, from which the same command goes on"

    # ---- Saving

    def save(self, step: int, state: State, meta: dict[str, Any], metrics: dict[str, Any] | None = None) -> None:
        """Starts a save of `state` after `step` updates; it is written beside the training and commits by renaming.

        metrics: of an evaluation of this very state, or None. A failure is said, here or by `poll`, and harms nothing
        that was saved before.
        """
        self._settle()
        value = (metrics or {}).get(self._best) if self._best else None
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_stored(state)), meta=ocp.args.JsonSave({**meta, "metric": value})
        )
        self._pending = step, time.monotonic()
        try:
            self._saver.save(self.folder / str(step), args=_SummedArgs(**dict(items.items())))
        except self._failures as error:
            self._failed(error)

    def poll(self) -> None:
        """Says if the save under way has failed; costs nothing while it goes on."""
        if self._pending is None:
            return
        try:
            self._saver.check_for_errors()
        except self._failures as error:
            self._failed(error)
        else:
            if self._may_look() and _committed(self.folder / str(self._pending[0])):
                self._settle()

    def _may_look(self) -> bool:
        """Not at every step into a bucket, which takes a while to answer."""
        now = time.monotonic()
        if is_remote(self.folder) and now < self._look_after:
            return False
        self._look_after = now + 5.0
        return True

    def wait(self) -> None:
        """Waits for the save under way. Raises RunFailed where the newest save failed."""
        self._settle()
        if self._last_failure is not None:
            raise RunFailed(f"{self._last_failure}; {self.resume_hint()}")

    @property
    def last_save_seconds(self) -> float:
        """Of this start; 0 before the first save."""
        return self._save_seconds

    def _settle(self) -> None:
        if self._pending is None:
            return
        try:
            self._saver.wait_until_finished()
        except self._failures as error:
            self._failed(error)
            return
        (self._good, began), self._pending = self._pending, None
        self._save_seconds, self._last_failure, self._looked = time.monotonic() - began, None, True
        self._tidy()

    def _failed(self, error: BaseException) -> None:
        assert self._pending is not None
        (step, _), self._pending = self._pending, None
        for _ in range(9):  # of one save Orbax tells one failure at a time, and the rest at the next
            try:
                self._saver.wait_until_finished()
                break
            except self._failures:
                continue
        reason = machine_error(error) or " ".join(str(error).split())  # TensorStore's text begins with long paths
        self._last_failure = f"the state of step {step} could not be saved in {self.folder}: {reason[:500]}"
        say(f"warning: {self._last_failure}; {self.resume_hint()}. The next save is tried as configured")
        self._clear()

    def _tidy(self) -> None:
        """Removes what is neither among the newest nor the best; renamed first, so that no half of one is left."""
        if not is_writer():
            return
        kept = {*self.steps()[-self._keep :], self._good, self._best_step()}
        for step in self.steps():
            if step not in kept:
                self._remove(self.folder / str(step))

    def _remove(self, path: StoragePath) -> None:
        try:
            if is_remote(path):  # where nothing is renamed: what has no commit is none
                (path / checksums.COMMIT).unlink()
            else:
                gone = path.with_name(path.name + _REMOVED)
                path.rename(gone)
                path = gone
            remove(path)
        except self._failures as error:
            say(f"warning: {path} could not be removed: {getattr(error, 'strerror', None) or error}")

    def _best_step(self) -> int | None:
        if self._best is None:
            return None
        sign = -1 if self._best.endswith("loss") else 1
        measured = {}
        for step in self.steps():
            try:
                value = self.meta(step).get("metric")
            except self._failures:  # a damaged older one is no best one
                continue
            if isinstance(value, int | float):
                measured[step] = sign * value
        return max(measured, key=lambda step: (measured[step], step), default=None)

    def _clear(self) -> None:
        """Removes what a killed or failed save, or a removal, left half done."""
        for path in self._below() if is_writer() else ():
            unfinished = ocp.utils.TMP_DIR_SUFFIX in path.name or path.name.endswith(_REMOVED)
            if unfinished or (path.name.isdigit() and not _committed(path)):
                remove(path, ignore_errors=True)  # what stays is in nobody's way

    # ---- Restoring

    def meta(self, step: int) -> dict[str, Any]:
        return json.loads((self.folder / str(step) / "meta" / "metadata").read_text(encoding="utf-8"))

    def restore(self, step: int, like: State) -> State:
        """The state saved after `step` updates, placed as `like` is; with adapters the base comes from `like`."""
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _stored(like))
        handler = ocp.StandardCheckpointHandler()
        restored = handler.restore(self._state_of(step), args=ocp.args.StandardRestore(wanted))
        return dataclasses.replace(like, **restored)

    def restore_trained(self, step: int, like: Any, *, adapters: bool) -> Any:
        """The weights alone (or the adapters) saved after `step` updates, without what an optimizer needs beside them.

        like: a tree of ShapeDtypeStruct with shardings.
        """
        name = "lora" if adapters else "params"
        arguments = ocp.checkpoint_utils.construct_restore_args({name: like})
        wanted = ocp.args.PyTreeRestore({name: like}, restore_args=arguments, partial_restore=True)
        return ocp.PyTreeCheckpointHandler().restore(self._state_of(step), args=wanted)[name]

    def _state_of(self, step: int) -> Any:
        return epath.Path(self.folder / str(step) / "state")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Whatever ends the run: what Orbax does beside us must not outlive it; but it waits for no lost process."""
        if not process_lost(error):
            self.close()

    def close(self) -> None:
        if self._saver is not None:
            self._settle()
            self._saver.close()


def _committed(path: StoragePath) -> bool:
    """Whether a save is whole: a folder appears by renaming, in a bucket a last object says so."""
    return (path / checksums.COMMIT).exists() if is_remote(path) else path.is_dir()


def _stored(state: State) -> dict[str, Any]:
    """What a save holds: not the base model under adapters, which nothing changes."""
    fields = {"step": state.step, "skipped": state.skipped, "opt_state": state.opt_state}
    return {**fields, "params": state.params} if state.lora is None else {**fields, "lora": state.lora}
