"""The fixture `tiny`: each family's golden model in turn."""

import pytest

from tests.models.tiny_models import FAMILIES, Tiny, tiny_model


@pytest.fixture(params=FAMILIES)
def tiny(request) -> Tiny:
    return tiny_model(request.param)
