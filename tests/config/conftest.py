"""A recipe that a test writes."""

import pathlib

import pytest


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and returns its path."""

    def write(text: str, name: str = "mine.yaml") -> pathlib.Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
