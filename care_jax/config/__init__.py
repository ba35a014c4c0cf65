"""The configuration of a run: YAML files and overrides, validated into typed, frozen models."""

from care_jax.config.blocks import OptimizerConfig, ProfileConfig
from care_jax.config.compare import numeric_hash, refusing_differences, rounding_differences
from care_jax.config.config import Config, dump, load, parse, resolve, steps_of, summary, with_template_date

__all__ = [
    "Config", "OptimizerConfig", "ProfileConfig", "dump", "load", "numeric_hash", "parse",
    "refusing_differences", "resolve", "rounding_differences", "steps_of", "summary", "with_template_date",
]  # fmt: skip
