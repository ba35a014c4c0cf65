"""The command `care-jax`."""

from care_jax.cli.entry import main

__all__ = ["main"]
