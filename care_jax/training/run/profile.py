"""The profiler's trace of a few steps."""

import pathlib

import jax

from care_jax.config import ProfileConfig
from care_jax.distributed import say


class Trace:
    """Traces the steps start to start + steps - 1, or those of them that this process computes.

    As a context it ends a trace that is under way, however the run ends.
    """

    def __init__(self, profile: ProfileConfig | None, folder: pathlib.Path, total: int):
        """total: number of steps of the run."""
        self._folder, self._running = folder, False
        self._steps = (
            range(0) if profile is None else range(profile.start, min(profile.start + profile.steps, total + 1))
        )
        if profile is not None and not self._steps:
            say(f"profile.start: {profile.start}, but the run has {total} steps: nothing will be traced")

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_if_due(self, number: int) -> None:
        """number: the step that comes next."""
        if number in self._steps and not self._running:
            self._running = True
            jax.profiler.start_trace(str(self._folder))

    def is_last(self, number: int) -> bool:
        """Returns whether the trace that is under way ends with this step."""
        return self._running and number == self._steps[-1]

    def stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            say(f"profile written to {self._folder}")
