"""HTTP to an endpoint."""

import time

from care_jax.evaluation.endpoint.transport import retry_after


def test_retry_after_is_a_number_or_a_date():
    assert retry_after({"Retry-After": "7"}) == 7.0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert (
        3000
        < retry_after({"Retry-After": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))})
        <= 3600
    )
    assert retry_after({"Retry-After": "soon"}) is None
    assert retry_after({}) is None
