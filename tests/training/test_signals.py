"""SIGTERM and the first Ctrl-C ask, a second Ctrl-C ends at once, also while the main thread waits."""

import signal
import subprocess
import sys

import pytest

WAITING = """
import sys, time
from care_jax.training.signals import Interrupted, StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    for _ in range(100):
        time.sleep(0.1 if sys.argv[1] == "polite" else 30)  # a compiler, too, is waited for without a word
        try:
            stop.check("here")
        except Interrupted as stopped:
            print(stopped)
            sys.exit(75)
"""


def waiting(how):
    started = subprocess.Popen([sys.executable, "-c", WAITING, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout.readline() == b"ready\n"
    return started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks(number):
    started = waiting("polite")
    started.send_signal(number)
    out, err = started.communicate(timeout=30)
    assert started.returncode == 75
    assert b"stopped here" in out
    assert b"stopping" in err


def test_a_second_interrupt_ends_at_once():
    started = waiting("deaf")
    for _ in range(3):
        started.send_signal(signal.SIGTERM)  # however often: a job manager's are no impatience
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=20)
    assert started.returncode == 130
    assert b"ended at once" in err
