"""Orbax's asynchronous saver of a state and its JSON: it adds checksums, and hides tracebacks of failed saves."""

import functools
import logging
import sys
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.future import ChainedFuture, Future

from care_jax.models.arch import Params
from care_jax.textfiles import JsonObject
from care_jax.training.run import checksums
from care_jax.training.run.bucket import path_of


def make_saver() -> ocp.AsyncCheckpointer:
    """Returns a saver of what `save_args` returns. It saves one checkpoint at a time, in threads; each of its methods
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


def save_args(state: Params, meta: JsonObject) -> ocp.args.Composite:
    return _ArgsWithChecksums(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))


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
