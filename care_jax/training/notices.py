"""The notice that Google Compute Engine gives of a machine that it takes away.

The metadata server's `instance/preempted` turns to TRUE when a spot machine, a TPU machine too, is to go, about 30 s
before it does (cloud.google.com/compute/docs/instances/create-use-spot; cloud.google.com/compute/docs/metadata).
Not every job there gets a SIGTERM of it: a process of a login shell does not.
"""

import http.client
import os
import pathlib
import threading
import urllib.request

from care_jax.training.run.directory import say

_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")  # what the firmware calls the machine
_FLAVOR = {"Metadata-Flavor": "Google"}  # of the question and of the answer: no other server speaks so
_WAIT_SECONDS = 60  # the server answers at once when the value changes, else after that long
_TRIES = 6


def metadata_host() -> str | None:
    """The metadata server, on a machine of Google's alone; elsewhere None, so that nothing is ever asked.

    GCE_METADATA_HOST names another one, and NO_GCE_CHECK=true asks none, as in Google's own libraries.
    """
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return None
    if named := os.environ.get("GCE_METADATA_HOST"):
        return named
    try:
        product = _PRODUCT.read_text(encoding="utf-8").strip()
    except OSError:  # no such firmware: not Google's
        return None
    return "metadata.google.internal" if product in ("Google Compute Engine", "Google") else None


def preempted(host: str, closed: threading.Event, pause: float = 1.0) -> bool:
    """Waits until the machine is to go (True), `closed` is set, or the server fails too often in a row (False).

    pause: seconds between two questions, and before the first retry.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # what a proxy says is of another machine
    etag, failed = "0", 0
    while not closed.is_set():
        url = f"http://{host}/computeMetadata/v1/instance/preempted"
        request = urllib.request.Request(
            f"{url}?wait_for_change=true&timeout_sec={_WAIT_SECONDS}&last_etag={etag}", headers=_FLAVOR
        )
        try:
            with opener.open(request, timeout=_WAIT_SECONDS + 10) as answer:
                if answer.headers.get("Metadata-Flavor") != "Google":
                    raise OSError("not a metadata server")
                value, etag, failed = answer.read(16).strip(), answer.headers.get("ETag", "0"), 0
            if value == b"TRUE":
                return True
        except (OSError, http.client.HTTPException) as error:
            failed += 1
            if failed == _TRIES:
                say(f"warning: {url} fails ({error}): that this machine is to be taken away is heard as SIGTERM alone")
                return False
        closed.wait(pause * 2**failed)
    return False
