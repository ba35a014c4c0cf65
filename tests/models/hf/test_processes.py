"""Of several processes, one downloads a model; the others wait, and fail if it does."""

import os
import socket
import subprocess
import sys

WORKER = """
import pathlib, sys, time
import huggingface_hub, jax
from care_jax import models, sharding
from care_jax.errors import UserError

sharding.start_processes()
log = pathlib.Path(sys.argv[1])

def write(event):
    with open(log, "a") as file:
        file.write(f"{jax.process_index()} {event}\\n")

def snapshot_download(name, **options):
    assert options["revision"] == "abc"
    if name == "some/broken":
        raise OSError("no network")
    write("begins")
    time.sleep(0.5 if jax.process_index() == 0 else 0)
    write("ends")
    return str(log.parent)

huggingface_hub.snapshot_download = snapshot_download
assert models.resolve("some/model", "abc") == log.parent
try:
    models.resolve("some/broken", "abc")
except UserError as error:
    write(str(error))
"""


def test_one_process_downloads_and_the_others_wait(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }
    log = tmp_path / "log"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(log)],
            env=environment | {"JAX_PROCESS_ID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], errors
    lines = log.read_text().splitlines()
    assert lines[:4] == ["0 begins", "0 ends", "1 begins", "1 ends"]
    assert "0 model.path: some/broken: no such folder, and the hub does not have it: no network" in lines[4:]
    assert "1 model.path: process 0 could not read it; see its error" in lines[4:]
