"""Alarms for what goes wrong in preference training while every number stays finite. They are only lines in the log."""

import collections
import math
from collections.abc import Mapping

import numpy as np

from care_jax.data.packing.batch import Batch

WINDOW = 10  # steps; the alarms compare means over windows
COLLAPSE = 1.0  # nats per token that the chosen responses may lose
TRUNCATED = 0.05  # share of completions that may be cut


def truncation_alarm(truncated: int, completions: int, max_length: int) -> str | None:
    """Returns an alarm if more than 5 % of the completions are cut: the model would learn answers without an end."""
    if truncated <= TRUNCATED * completions:
        return None
    return (
        f"alarm: {truncated} of {completions} completions ({truncated / completions:.1%}) are cut at data.max_length "
        f"{max_length}: more than {TRUNCATED:.0%} have no end"
    )


def mean_chosen_tokens(view: str, batch: Batch) -> float:
    """Returns the mean number of completion tokens of the chosen responses of a batch (NumPy arrays); NaN if the view
    has no chosen responses.
    """
    if view == "pairs":
        chosen = np.take_along_axis(batch.lengths, batch.pairs[..., 0], axis=-1)
        weights = batch.pair_weights
    elif view == "unpaired":
        chosen, weights = batch.lengths, batch.response_weights * batch.desirable
    else:
        return math.nan
    total = float(np.sum(weights))
    return float(np.sum(chosen * weights)) / total if total else math.nan


class Alarms:
    """Checks the metrics of each step; an alarm is given once, and again only after its cause was gone."""

    def __init__(self) -> None:
        self._recent: collections.deque[dict[str, float]] = collections.deque(maxlen=2 * WINDOW)
        self._first: list[float] = []  # logps per token of the first steps
        self._active: set[str] = set()

    def check(self, step: int, values: Mapping[str, float], chosen_tokens: float) -> list[str]:
        """Returns new alarms. values: the metrics of a step; chosen_tokens: its mean tokens per chosen response."""
        logp_per_token = values.get("logps/chosen", math.nan) / chosen_tokens
        self._recent.append({**values, "logp per token": logp_per_token})
        if len(self._first) < WINDOW and math.isfinite(logp_per_token):
            self._first.append(logp_per_token)
        if len(self._recent) < 2 * WINDOW:
            return []
        alarms = {"rewards": self._rewards_alarm(), "collapse": self._collapse_alarm(), "solved": self._solved_alarm()}
        new = [f"alarm at step {step}: {text}" for name, text in alarms.items() if text and name not in self._active]
        self._active = {name for name, text in alarms.items() if text}
        return new

    def _means(self, name: str) -> tuple[float, float]:
        """Returns the means of a metric over the window before the last one, and over the last one."""
        column = [values.get(name, math.nan) for values in self._recent]
        return float(np.mean(column[:WINDOW])), float(np.mean(column[WINDOW:]))

    def _rewards_alarm(self) -> str | None:
        sides = {side: self._means(f"rewards/{side}") for side in ("chosen", "rejected")}
        if all(now < before and now < 0 for before, now in sides.values()):
            means = ", ".join(f"{side} {before:.3g} to {now:.3g}" for side, (before, now) in sides.items())
            return (
                f"both rewards fall together ({means}, means of {WINDOW} steps): the model makes the chosen responses "
                "less likely too (try a lower learning rate, a higher beta, or an sft loss added to it)"
            )
        return None

    def _collapse_alarm(self) -> str | None:
        _, now = self._means("logp per token")
        start = float(np.mean(self._first)) if len(self._first) == WINDOW else math.nan
        if now < start - COLLAPSE:
            return f"the chosen responses' logp per token fell from {start:.2f} to {now:.2f}: the model collapses"
        return None

    def _solved_alarm(self) -> str | None:
        last = list(self._recent)[WINDOW:]
        if all(values.get("rewards/accuracies") == 1 and abs(values.get("loss", 1.0)) < 1e-3 for values in last):
            return (
                f"accuracy 1 and loss 0 for {WINDOW} steps: nothing is left to learn, or something other than the "
                "content (a length, a language, a marker) tells chosen from rejected"
            )
        return None
