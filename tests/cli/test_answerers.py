"""Who answers: an endpoint or a model, by the options of the command line."""

import argparse

from care_jax.cli.answerers import EndpointAnswerer, ModelAnswerer, make_answerer
from tests.evaluation.servers import Server, completion


def arguments(**options):
    endpoint = {"concurrency": 1, "timeout": 10.0, "retries": 0, "requests_per_minute": None}
    return argparse.Namespace(**{"base_url": None, "model": None, "dtype": "float32", **endpoint, **options})


def test_a_model_has_its_name_before_it_is_loaded():
    answerer = make_answerer(arguments(model="owner/name"))
    assert isinstance(answerer, ModelAnswerer)
    assert (answerer.name, answerer.has_weights) == ("owner/name", True)


def test_an_endpoint_has_the_name_of_the_model_that_it_serves():
    with Server(lambda *_: (200, {}, completion("A"), 0.0)) as server:
        answerer = make_answerer(arguments(base_url=server.url))
    assert isinstance(answerer, EndpointAnswerer)
    assert (answerer.name, answerer.has_weights, answerer.is_writer()) == ("only-one", False, True)
