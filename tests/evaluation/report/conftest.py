"""The folders of two systems with rated answers."""

import pytest

from tests.evaluation.report.rated import SYSTEMS, write_rated


@pytest.fixture
def folders(tmp_path):
    return [write_rated(tmp_path / name, name, shift, (5,) if shift else ()) for name, shift in SYSTEMS.items()]
