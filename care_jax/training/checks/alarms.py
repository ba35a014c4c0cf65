"""What goes wrong in preference training while every number stays finite: said in the log, never ending a run."""

import collections
import math
from collections.abc import Mapping

import numpy as np

from care_jax.data.packing.plans import Batch

WINDOW = 10  # steps whose mean is looked at
COLLAPSE = 1.0  # nats a token that the chosen responses may lose
TRUNCATED = 0.05  # share of completions that may be cut


def truncation_alarm(truncated: int, completions: int, max_length: int) -> str | None:
    """Completions cut at the maximum length beyond 5 %: the model would learn to prefer answers without an end."""
    if truncated <= TRUNCATED * completions:
        return None
    return (
        f"alarm: {truncated} of {completions} completions ({truncated / completions:.1%}) are cut at data.max_length "
        f"{max_length}: more than {TRUNCATED:.0%} end in the middle"
    )


def mean_chosen_tokens(view: str, batch: Batch) -> float:
    """Mean completion tokens of the chosen responses of a step's batch (numpy); NaN where the view has no such side."""
    if view == "pairs":
        chosen = np.take_along_axis(batch.lengths, batch.pairs[..., 0], axis=-1)
        weights = batch.pair_weights
    elif view == "unpaired":
        chosen, weights = batch.lengths, batch.segment_weights * batch.desirable
    else:
        return math.nan
    total = float(np.sum(weights))
    return float(np.sum(chosen * weights)) / total if total else math.nan


class Alarms:
    """Looks at the steps' numbers as they come; each alarm is given once until what it tells of is over."""

    def __init__(self) -> None:
        self._recent: collections.deque[dict[str, float]] = collections.deque(maxlen=2 * WINDOW)
        self._first: list[float] = []  # logps a token of the first steps seen
        self._ringing: set[str] = set()

    def check(self, step: int, values: Mapping[str, float], chosen_tokens: float) -> list[str]:
        """values: the metrics of a step; returns what is to be said."""
        a_token = values.get("logps/chosen", math.nan) / chosen_tokens
        self._recent.append({**values, "logp a token": a_token})
        if len(self._first) < WINDOW and math.isfinite(a_token):
            self._first.append(a_token)
        if len(self._recent) < 2 * WINDOW:
            return []
        found = {
            "rewards": self._both_fall(),
            "collapse": self._collapse(),
            "solved": self._solved(),
        }
        new = [f"alarm at step {step}: {text}" for name, text in found.items() if text and name not in self._ringing]
        self._ringing = {name for name, text in found.items() if text}
        return new

    def _means(self, name: str) -> tuple[float, float]:
        """Of the window before the last one, and of the last one."""
        column = [one.get(name, math.nan) for one in self._recent]
        return float(np.mean(column[:WINDOW])), float(np.mean(column[WINDOW:]))

    def _both_fall(self) -> str | None:
        sides = {side: self._means(f"rewards/{side}") for side in ("chosen", "rejected")}
        if all(now < before and now < 0 for before, now in sides.values()):
            shown = ", ".join(f"{side} {before:.3g} to {now:.3g}" for side, (before, now) in sides.items())
            return (
                f"both rewards fall together ({shown}, means of {WINDOW} steps): the model makes the chosen responses "
                "less likely too (a lower learning rate, a higher beta, or an sft loss beside it)"
            )
        return None

    def _collapse(self) -> str | None:
        _, now = self._means("logp a token")
        start = float(np.mean(self._first)) if len(self._first) == WINDOW else math.nan
        if now < start - COLLAPSE:
            return f"the chosen responses' logp a token has fallen from {start:.2f} to {now:.2f}: the model collapses"
        return None

    def _solved(self) -> str | None:
        last = list(self._recent)[WINDOW:]
        if all(one.get("rewards/accuracies") == 1 and abs(one.get("loss", 1.0)) < 1e-3 for one in last):
            return (
                f"accuracy 1 and loss 0 for {WINDOW} steps: nothing is left to learn, or something beside the content "
                "(a length, a language, a marker) tells chosen from rejected"
            )
        return None
