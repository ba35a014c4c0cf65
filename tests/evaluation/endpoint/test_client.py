"""The client: interrupts at any moment, the rate limit."""

import subprocess
import sys
import time

from care_jax.evaluation.endpoint.client import Client, Endpoint
from care_jax.evaluation.endpoint.transport import only_model, request_body
from tests.evaluation.servers import Server, completion

INTERRUPTED_AT_RANDOM = """
import contextlib, random, signal, time
from care_jax.evaluation.endpoint.client import Client, Endpoint
from care_jax.evaluation.endpoint.transport import request_body

def stop(number, frame):
    raise KeyboardInterrupt

def post(path, body):
    time.sleep(0.002)
    return {"choices": [{"message": {"content": "x"}}]}

signal.signal(signal.SIGALRM, stop)
client = Client(Endpoint("http://127.0.0.1:1/v1", "m"))
client._post = post
bodies = [request_body("m", str(number)) for number in range(450)]
for seed in range(150):
    signal.setitimer(signal.ITIMER_REAL, random.Random(seed).uniform(0.002, 0.05))
    with contextlib.suppress(KeyboardInterrupt):
        for _ in client.ask_all(bodies):
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
print("ended")
"""


def test_the_client_ends_after_an_interrupt_at_any_moment():
    """150 interrupts: none leaves a worker waiting for a lock that the interrupted thread holds."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_AT_RANDOM], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ended\n", done.stderr


def test_a_rate_limit_spreads_the_calls():
    def answer(prompt, before, call):
        return 200, {}, completion("x"), 0.0

    with Server(answer) as server:
        client = Client(Endpoint(server.url, "m", requests_per_minute=1200.0))
        began = time.monotonic()
        bodies = [request_body("m", [{"role": "user", "content": str(n)}]) for n in range(11)]
        assert len(list(client.ask_all(bodies))) == 11
        assert time.monotonic() - began >= 0.5
        assert only_model(server.url) == "only-one"
