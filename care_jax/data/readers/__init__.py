"""Readers: from datasets to questions with rated responses. A reader is added in the table of `registry`."""

from care_jax.data.readers.registry import READERS, ReaderSpec, Reading, find_reader, read

__all__ = ["READERS", "ReaderSpec", "Reading", "find_reader", "read"]
