"""A run's checkpoints: the state, its step (which is the data position) and the configuration in one atomic save."""

import dataclasses
import functools
import json
import logging
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.future import ChainedFuture, Future

from care_jax import distributed
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.models.arch import Params
from care_jax.textfiles import JsonObject
from care_jax.training.errors import RunFailed, machine_error, process_lost
from care_jax.training.run import checksums
from care_jax.training.run.bucket import StoragePath, is_remote, move, path_of, remove
from care_jax.training.step import State

# What a disk, a file system or another process does to a save. The failure is reported and the save tried again at the
# next interval; the last one of a run must succeed.
_SAVE_FAILURES = (OSError, ValueError, RuntimeError)
_DAMAGED, _REMOVED = ".damaged", ".removed"  # endings of the names of checkpoints that are no longer used
_BUCKET_SECONDS = 5.0  # between two requests to a bucket whether a save has committed


class Checkpoints:
    """Saves asynchronously to `folder`; keeps the newest `keep` checkpoints and, with `best`, the best one.

    best: a metric of the evaluation; the lowest value is best if its name ends with loss, else the highest. read_only:
    nothing in the folder is changed, since the run may be under way elsewhere.
    """

    def __init__(self, folder: StoragePath, keep: int = 1, best: str | None = None, *, read_only: bool = False):
        self.folder: StoragePath = folder.absolute() if isinstance(folder, pathlib.Path) else folder
        self._keep, self._best, self._read_only = keep, best, read_only
        self._newest_sound: int | None = None  # a step whose checkpoint was verified, or written by this process
        self._verified = False  # whether `_newest_sound` is known
        self._pending: tuple[int, float] | None = None  # the step of a save under way, and when it began
        self.last_save_seconds = 0.0  # of this process; 0 before the first save
        self._last_failure: str | None = None
        self._next_look = 0.0  # when a bucket may be asked again (time.monotonic)
        # gcsfs raises whatever HTTP and credentials raise.
        self._failures = (Exception,) if is_remote(folder) else _SAVE_FAILURES
        if not read_only:
            if not is_remote(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            self._saver = _make_saver()

    # ---- What the folder holds

    def steps(self) -> list[int]:
        """Returns the steps of the committed checkpoints, ascending, sound or not."""
        return sorted(int(path.name) for path in self._entries() if path.name.isdigit() and _committed(path))

    def _entries(self) -> list[StoragePath]:
        return list(self.folder.iterdir()) if self.folder.exists() else []

    def latest(self) -> int | None:
        """Renames damaged checkpoints (unless read only), and returns the step of the newest sound one, or None.

        Verifies the checksums from the newest to the first sound checkpoint, and names the damaged ones. Raises
        UserError if all are damaged, or if one cannot be read.
        """
        if self._verified:
            return self._newest_sound
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage is None:
                self._newest_sound = step
                break
            damaged[step] = damage
        if damaged and self._newest_sound is None:
            reasons = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
            raise UserError(
                f"{self.folder}: no checkpoint is sound ({reasons}). Delete the folder to start again from step 0, or "
                "choose another output_dir"
            )
        for step, damage in damaged.items():
            renamed = "" if self._read_only else f"; the damaged one is now {self._set_aside(step)}"
            say(
                f"warning: the checkpoint of step {step} is damaged: {damage}. "
                f"That of step {self._newest_sound} is used instead{renamed}"
            )
        self._verified = True
        return self._newest_sound

    def _damage(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint, or None. Each process verifies its share of the files."""
        try:
            damage = checksums.damage(self.folder / str(step), (jax.process_index(), jax.process_count()))
        except PermissionError as error:
            raise UserError(
                f"{error.filename}: the checkpoint of step {step} cannot be read ({error.strerror}). Make it readable; "
                f"or move {self.folder / str(step)} away, and the one before is used"
            ) from None
        return damage or ("another process found the damage" if distributed.anywhere(damage is not None) else None)

    def _set_aside(self, step: int) -> StoragePath:
        """Renames a damaged checkpoint, so that it is not read again; returns its new path."""
        number, target = 1, self.folder / f"{step}{_DAMAGED}"
        while target.exists():
            number, target = number + 1, self.folder / f"{step}{_DAMAGED}{number}"
        if is_writer():
            move(self.folder / str(step), target)
        return target

    def resume_hint(self) -> str:
        """Returns a sentence that says from which checkpoint a run that ends now will resume."""
        step = self._newest_sound
        if self._pending is not None and _committed(self.folder / str(self._pending[0])):
            step = self._pending[0]
        if step is None:
            return "no checkpoint was saved yet; the same command starts again"
        return f"the last good checkpoint is that of step {step}, from which the same command resumes"

    # ---- Saving

    def save(self, step: int, state: State, meta: JsonObject, metrics: JsonObject | None = None) -> None:
        """Starts to save the state after `step` steps, in threads; the save commits by renaming.

        metrics: results of an evaluation of this state, or None. A failure is reported, here or by `poll`, and leaves
        earlier checkpoints as they are.
        """
        self._finish_pending()
        value = (metrics or {}).get(self._best) if self._best else None
        self._pending = step, time.monotonic()
        try:
            args = _ArgsWithChecksums(
                state=ocp.args.StandardSave(_stored(state)), meta=ocp.args.JsonSave({**meta, "metric": value})
            )
            self._saver.save(self.folder / str(step), args=args)
        except self._failures as error:
            self._report_failure(error)

    def poll(self) -> None:
        """Reports the pending save if it has failed, and closes it if it has committed; does not wait for it."""
        if self._pending is None:
            return
        try:
            self._saver.check_for_errors()
        except self._failures as error:
            self._report_failure(error)
            return
        if is_remote(self.folder) and time.monotonic() < self._next_look:
            return  # a bucket takes a while to answer, so it is not asked at every step
        self._next_look = time.monotonic() + _BUCKET_SECONDS
        if _committed(self.folder / str(self._pending[0])):
            self._finish_pending()

    def wait(self) -> None:
        """Waits for the pending save. Raises RunFailed if the newest save failed."""
        self._finish_pending()
        if self._last_failure is not None:
            raise RunFailed(f"{self._last_failure}; {self.resume_hint()}")

    def _finish_pending(self) -> None:
        if self._pending is None:
            return
        try:
            self._saver.wait_until_finished()
        except self._failures as error:
            self._report_failure(error)
            return
        (self._newest_sound, began), self._pending = self._pending, None
        self.last_save_seconds, self._last_failure, self._verified = time.monotonic() - began, None, True
        self._remove_old()

    def _report_failure(self, error: BaseException) -> None:
        assert self._pending is not None
        (step, _), self._pending = self._pending, None
        for _ in range(9):  # Orbax raises the failures of one save one at a time: the others at the next calls
            try:
                self._saver.wait_until_finished()
                break
            except self._failures:
                continue
        reason = machine_error(error) or " ".join(str(error).split())  # TensorStore's text begins with long paths
        self._last_failure = f"the state of step {step} could not be saved in {self.folder}: {reason[:500]}"
        say(f"warning: {self._last_failure}; {self.resume_hint()}. It will be tried again at the next save interval")
        self._remove_unfinished()

    # ---- Removing

    def _remove_old(self) -> None:
        """Removes the checkpoints that are neither among the newest nor the best."""
        if not is_writer():
            return
        kept = {*self.steps()[-self._keep :], self._newest_sound, self._best_step()}
        for step in self.steps():
            if step not in kept:
                self._remove(self.folder / str(step))

    def _remove(self, path: StoragePath) -> None:
        """Removes a checkpoint. Its name or commit file goes first, so that a kill leaves no partial one."""
        try:
            if is_remote(path):  # nothing is renamed in a bucket; without its commit file it is no checkpoint
                (path / checksums.COMMIT).unlink()
            else:
                renamed = path.with_name(path.name + _REMOVED)
                path.rename(renamed)
                path = renamed
            remove(path)
        except self._failures as error:
            say(f"warning: {path} could not be removed: {getattr(error, 'strerror', None) or error}")

    def _best_step(self) -> int | None:
        if self._best is None:
            return None
        sign = -1 if self._best.endswith("loss") else 1
        scores: dict[int, float] = {}
        for step in self.steps():
            try:
                value = self.meta(step).get("metric")
            except self._failures:  # an older checkpoint that is damaged cannot be the best
                continue
            if isinstance(value, int | float):
                scores[step] = sign * value
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def _remove_unfinished(self) -> None:
        """Removes what killed or failed saves and removals left."""
        for path in self._entries() if is_writer() else ():
            unfinished = ocp.utils.TMP_DIR_SUFFIX in path.name or path.name.endswith(_REMOVED)
            if unfinished or (path.name.isdigit() and not _committed(path)):
                remove(path, ignore_errors=True)  # what cannot be removed does no harm

    # ---- Restoring

    def meta(self, step: int) -> JsonObject:
        """Returns the JSON that was saved with the state."""
        return json.loads((self.folder / str(step) / "meta" / "metadata").read_text(encoding="utf-8"))

    def restore(self, step: int, like: State) -> State:
        """Returns the state saved after `step` steps, sharded as `like`; with adapters the base comes from `like`."""
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _stored(like))
        handler = ocp.StandardCheckpointHandler()
        restored = handler.restore(epath.Path(self.folder / str(step) / "state"), args=ocp.args.StandardRestore(target))
        return dataclasses.replace(like, **restored)

    def restore_trained(self, step: int, like: Params, *, adapters: bool) -> Params:
        """Returns the weights (or the adapters) saved after `step` steps, without the optimizer's state.

        like: a tree of ShapeDtypeStruct with shardings.
        """
        name = "lora" if adapters else "params"
        options = ocp.checkpoint_utils.construct_restore_args({name: like})
        target = ocp.args.PyTreeRestore({name: like}, restore_args=options, partial_restore=True)
        return ocp.PyTreeCheckpointHandler().restore(epath.Path(self.folder / str(step) / "state"), args=target)[name]

    # ---- Closing

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Ends Orbax's threads, unless another process is lost: they would wait for it."""
        if not self._read_only and not process_lost(error):
            self._finish_pending()
            self._saver.close()


def _committed(path: StoragePath) -> bool:
    """Returns whether a save is complete: a folder appears by renaming; in a bucket a last object marks the commit."""
    return (path / checksums.COMMIT).exists() if is_remote(path) else path.is_dir()


def _stored(state: State) -> Params:
    """Returns what is saved of a state: with adapters not the base model, which does not change."""
    fields = {"step": state.step, "skipped": state.skipped, "opt_state": state.opt_state}
    return {**fields, "params": state.params} if state.lora is None else {**fields, "lora": state.lora}


# ---- Orbax


def _make_saver() -> ocp.AsyncCheckpointer:
    """Returns Orbax's saver of `_ArgsWithChecksums`. It saves one checkpoint at a time, in threads; each of its methods
    may raise the failure of an earlier save.
    """
    _silence_failed_saves()
    # Orbax would make the directories in a thread; otherwise a failure is raised by `save` itself.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    handler = _HandlerWithChecksums(
        state=ocp.StandardCheckpointHandler(),
        meta=ocp.JsonCheckpointHandler(),
        composite_options=ocp.CompositeOptions(async_options=options),
    )
    return ocp.AsyncCheckpointer(handler, async_options=options)


class _HandlerWithChecksums(ocp.CompositeCheckpointHandler):
    """Writes the checksums of a save before Orbax commits it: each process those of its own files, the first the rest.

    Orbax has no checksums of its own that a restore verifies.
    """

    async def async_save(self, directory: epath.Path, args: ocp.args.Composite) -> list[Future] | None:
        futures = await super().async_save(directory, args)
        write_part = functools.partial(checksums.write_part, path_of(directory), jax.process_index())
        return [ChainedFuture(futures or [], write_part)]

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        checksums.seal(path_of(directory))


@ocp.args.register_with_handler(_HandlerWithChecksums, for_save=True, for_restore=True)
class _ArgsWithChecksums(ocp.args.Composite):
    """Orbax chooses the handler of a save by the class of its arguments."""


def _silence_failed_saves() -> None:
    """Hides what Orbax prints about a failed save: `Checkpoints` reports it in one sentence.

    This lasts for the life of the process, since late callbacks come after the last save too.
    """
    logging.getLogger("absl").addFilter(_is_no_failed_save)  # a filter that is added twice counts once
    if getattr(sys.unraisablehook, "func", None) is not _ignore_late_callbacks:
        sys.unraisablehook = functools.partial(_ignore_late_callbacks, sys.unraisablehook)


def _is_no_failed_save(record: logging.LogRecord) -> bool:
    """Filters the log: Orbax logs the traceback of a failed save as an error."""
    return not (record.levelno >= logging.ERROR and record.module in ("async_checkpointer", "future"))


def _ignore_late_callbacks(
    hook: Callable[["sys.UnraisableHookArgs"], object], unraisable: "sys.UnraisableHookArgs"
) -> None:
    """Replaces `sys.unraisablehook`. The writes of a failed save continue in threads; each of them finds, when it ends,
    that the event loop of that save is closed. hook: the one before, for all other errors.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        hook(unraisable)
