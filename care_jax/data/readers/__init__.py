"""Readers: from datasets to questions with rated responses. A reader is added in the table of `registry`."""

from care_jax.data.readers.registry import READERS, ReaderSpec, Reading, read

__all__ = ["READERS", "ReaderSpec", "Reading", "read"]
