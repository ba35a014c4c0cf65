"""Who answers: an endpoint or a model."""

from care_jax.evaluation.answers.answerers import EndpointAnswerer, ModelAnswerer
from care_jax.evaluation.endpoint.client import Endpoint


def test_a_model_has_its_name_before_it_is_loaded():
    answerer = ModelAnswerer("owner/name", "float32")
    assert (answerer.name, answerer.has_weights) == ("owner/name", True)


def test_an_endpoint_has_the_name_of_its_model():
    answerer = EndpointAnswerer(Endpoint("http://127.0.0.1:9/v1", "served"))
    assert (answerer.name, answerer.has_weights, answerer.is_writer()) == ("served", False, True)
