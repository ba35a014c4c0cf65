"""Compares two configurations of a run: which differences change its numbers, and which only their rounding."""

import functools
import hashlib
import json
import operator
from typing import TypeAlias

from care_jax.config.config import Config
from care_jax.textfiles import JsonObject

Differences: TypeAlias = dict[str, tuple[object, object]]  # dotted key -> (value in a, value in b)

# These change the order of sums: numbers stay equal up to rounding, not bit for bit.
_ROUNDING_KEYS = (
    *("mesh", "model.remat", "model.attention", "reference.mode", "optimizer.accumulate_dtype"),
    *("batch.row_length", "batch.microbatch_rows", "batch.packing", "batch.share_responses", "batch.share_prompts"),
)
# What may change when a run is resumed: where it runs, what it writes and how often, and what rounds.
_FREE_KEYS = {
    *("name", "output_dir", "resume", "checkpoint", "nonfinite", "profile", "log_every", "eval_every"),
    *("evaluation", "trackers", "data.strict"),
    *_ROUNDING_KEYS,
}


def refusing_differences(a: Config, b: Config) -> Differences:
    """Returns the keys that refuse a resume: they differ, and change more than rounding. None: a value is absent."""
    left, right = _numeric_values(a), _numeric_values(b)
    return {key: (left.get(key), right.get(key)) for key in left | right if left.get(key) != right.get(key)}


def rounding_differences(a: Config, b: Config) -> Differences:
    """Returns the keys that differ and change only how a run's numbers are rounded: the run can be resumed."""

    def values(config: Config) -> list[object]:
        dumped = config.model_dump(mode="json")
        return [functools.reduce(operator.getitem, key.split("."), dumped) for key in _ROUNDING_KEYS]

    pairs = zip(_ROUNDING_KEYS, values(a), values(b), strict=True)
    return {key: (left, right) for key, left, right in pairs if left != right}


def numeric_hash(config: Config) -> str:
    """Returns 16 hex digits of the values that change a run's numbers; equal if `refusing_differences` is empty."""
    text = json.dumps(_numeric_values(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _numeric_values(config: Config) -> JsonObject:
    """Returns {dotted key: value} of everything that changes the numbers of a run beyond rounding."""
    flat: JsonObject = {}

    def walk(value: object, path: str) -> None:
        if path in _FREE_KEYS:
            return
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
            for index, inner in enumerate(value):
                walk(inner, f"{path}.{index}")
        else:
            flat[path] = value

    walk(config.model_dump(mode="json"), "")
    return flat
