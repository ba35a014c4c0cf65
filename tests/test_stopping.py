"""SIGTERM, the first Ctrl-C and a cloud's notice request a stop; a second Ctrl-C ends the process at once."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from care_jax import stopping
from care_jax.stopping import StopSignal
from tests.serving import serving

WAITING = """
import sys, time
from care_jax.stopping import Interrupted, StopSignal
grace = float(sys.argv[2]) if sys.argv[2:] else None
try:
    with StopSignal(grace, lambda: "the last good checkpoint is that of step 4") as stop:
        stop.estimate_stop(3.0, 4.0)
        print("ready", flush=True)
        for _ in range(100):
            time.sleep(0.1 if sys.argv[1] == "responsive" else 30)  # like a compiler, which does not look at signals
            stop.check("here")
except Interrupted as stopped:
    time.sleep(2 * (grace or 0))
    print(stopped)
    sys.exit(75)
"""


def waiting(*how):
    started = subprocess.Popen([sys.executable, "-c", WAITING, *how], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout.readline() == b"ready\n"
    return started


@pytest.mark.parametrize(("number", "how"), [(signal.SIGTERM, ["responsive", "1"]), (signal.SIGINT, ["responsive"])])
def test_the_first_signal_requests_a_stop(number, how):
    """The grace period ends when the StopSignal is left; what follows may take longer."""
    started = waiting(*how)
    started.send_signal(number)
    out, err = started.communicate(timeout=30)
    assert started.returncode == 75
    assert b"stopped here" in out
    assert b"stopping" in err
    assert b"in about 7 s (steps under way 3 s, a save 4 s)" in err


def test_a_second_interrupt_ends_at_once():
    started = waiting("busy")
    for _ in range(3):
        started.send_signal(signal.SIGTERM)  # several of them do not end the process
    time.sleep(1.0)  # Python handles SIGINT first if several signals wait
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=20)
    assert started.returncode == 130
    assert b"ended at once" in err


def test_a_step_that_outlasts_the_grace_is_left_without_a_save():
    started = waiting("busy", "0.2")
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=20)
    assert started.returncode == 75
    assert out == b""
    assert b"without a save if that takes more than 0.2 s (checkpoint.grace_seconds)" in err
    assert b"left without a save 0.2 s after the signal" in err
    assert b"the last good checkpoint is that of step 4" in err


@contextlib.contextmanager
def metadata_server(*answers):
    """Yields (host, requests): the server gives the answers in turn, the last one for ever.

    A number is an error status; a function is called for the answer.
    """
    requests = []

    def reply(request):
        answer = answers[min(len(requests), len(answers) - 1)]
        answer = answer() if callable(answer) else answer
        requests.append((request.path, request.headers.get("Metadata-Flavor")))
        request.send_response(answer if isinstance(answer, int) else 200)
        request.send_header("Metadata-Flavor", "Google")
        request.send_header("ETag", f"e{len(requests)}")
        request.end_headers()
        request.wfile.write(str(answer).encode())

    with serving(reply) as host:
        yield host, requests


def test_a_notice_of_the_cloud_requests_a_stop(monkeypatch, capfd):
    with metadata_server("TRUE") as (host, requests):
        monkeypatch.setenv("GCE_METADATA_HOST", host)
        with StopSignal() as stop:
            deadline = time.monotonic() + 20
            while stop.received_at is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            stop.poll()
            assert stop.requested
    assert (
        "this machine is to be taken away, stopping: the running step will be finished and saved"
        in capfd.readouterr().err
    )
    assert [flavor for _, flavor in requests] == ["Google"]


def test_the_notice_is_waited_for():
    with metadata_server("FALSE", 503, "FALSE", "TRUE") as (host, requests):
        assert stopping.wait_for_preemption(host, threading.Event(), pause=0.01)
    where = "/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec=60&last_etag="
    assert [path for path, _ in requests] == [where + etag for etag in ("0", "e1", "e1", "e3")]


def test_a_server_that_fails_is_not_asked_for_ever(capsys):
    with metadata_server(404) as (host, requests):
        assert not stopping.wait_for_preemption(host, threading.Event(), pause=0.001)
    assert len(requests) == 6
    assert "only SIGTERM announces" in capsys.readouterr().err


def test_no_other_machine_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)
    product = tmp_path / "product_name"
    monkeypatch.setattr(stopping, "_PRODUCT", product)
    assert stopping.metadata_host() is None
    product.write_text("Standard PC\n")
    assert stopping.metadata_host() is None
    product.write_text("Google Compute Engine\n")
    assert stopping.metadata_host() == "metadata.google.internal"
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert stopping.metadata_host() is None
