"""Checkpoints by Orbax: the state, its step (which is the data position) and the configuration in one atomic save."""

import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from care_jax.training.step import State


class Checkpoints:
    """Saves asynchronously to `folder`; keeps the newest `keep` and, with `best`, the one highest by that metric.

    read_only: of a run that may be going on elsewhere, whose half-written saves are not ours to clean up.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 1, best: str | None = None, *, read_only: bool = False):
        kept: list[Any] = [preservation_policy.LatestN(keep)]
        if best is not None:
            kept.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda found: found["best"], n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._best = best
        if not read_only:
            _clear(folder)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                save_root_metadata=not read_only,
                cleanup_tmp_directories=False,  # by us: Orbax does it in a thread that it never joins
                preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
            ),
            item_names=("state", "meta"),
        )

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: State, meta: dict[str, Any], metrics: dict[str, Any] | None = None) -> None:
        """Starts a save of `state` after `step` updates; it is written beside the training and commits by renaming.

        metrics: of an evaluation of this very state, or None.
        """
        value = (metrics or {}).get(self._best) if self._best else None
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(_stored(state)), meta=ocp.args.JsonSave(meta)),
            metrics=None if value is None else {"best": value},
        )

    def meta(self, step: int) -> dict[str, Any]:
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored["meta"]

    def restore(self, step: int, like: State) -> State:
        """The state saved after `step` updates, placed as `like` is; with adapters the base comes from `like`."""
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _stored(like))
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))
        state = dataclasses.replace(like, **restored["state"])
        return state

    def restore_trained(self, step: int, like: Any, *, adapters: bool) -> Any:
        """The weights alone (or the adapters) saved after `step` updates, without what an optimizer needs beside them.

        like: a tree of ShapeDtypeStruct with shardings.
        """
        name = "lora" if adapters else "params"
        arguments = ocp.checkpoint_utils.construct_restore_args({name: like})
        wanted = ocp.args.PyTreeRestore({name: like}, restore_args=arguments, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=wanted))["state"][name]

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _clear(folder: pathlib.Path) -> None:
    """Removes what a killed save left half-written."""
    if jax.process_index() == 0:
        for left in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(left)


def _stored(state: State) -> dict[str, Any]:
    """What a save holds: not the base model under adapters, which nothing changes."""
    fields = {"step": state.step, "skipped": state.skipped, "opt_state": state.opt_state}
    return {**fields, "params": state.params} if state.lora is None else {**fields, "lora": state.lora}
