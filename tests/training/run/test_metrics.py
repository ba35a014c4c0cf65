"""metrics.jsonl holds complete lines and is cut to the step that a run resumes from; TensorBoard; traces."""

import json
import math
import struct

import jax
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from care_jax.config import ProfileConfig
from care_jax.training.run.metrics import MetricsFile, TensorBoard, json_value
from care_jax.training.run.profile import Trace


def test_resume_keeps_lines_up_to_the_step_and_drops_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, None)
    for step in range(4):
        file.log(step, {"loss": 0.5})
    file.close()
    with path.open("a") as torn:
        torn.write('{"step": 4, "lo')

    resumed = MetricsFile(path, 2)
    assert [line["step"] for line in resumed.lines] == [0, 1, 2]
    resumed.log(3, {"loss": 0.25})
    resumed.sync()
    resumed.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n')
    MetricsFile(path, None).close()
    assert path.read_text() == ""


def test_tensorboard_reads_what_is_written(tmp_path):
    """Read by this test itself: lengths, masked checksums, and the events."""
    board = TensorBoard(tmp_path, 4)
    board.log(5, {"loss": 0.5, "mfu": None, "name": "text"})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        for part, at in ((data[:8], 8), (body, 12 + length)):
            crc = crc32c(part)
            assert struct.unpack("<I", data[at : at + 4])[0] == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
        events.append(Event.FromString(body))
        data = data[16 + length :]
    version, start, logged = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, 1)
    assert [(value.tag, value.simple_value) for value in logged.summary.value] == [("loss", 0.5)]
    board.close()


@pytest.mark.parametrize(("start", "steps", "total", "traced"), [(2, 2, 4, True), (3, 9, 4, True), (5, 1, 4, False)])
def test_a_trace_is_of_its_steps_and_ends_with_the_run(tmp_path, start, steps, total, traced):
    trace = Trace(ProfileConfig(start=start, steps=steps), tmp_path / "profile", total)
    with trace:
        for number in range(1, total + 1):
            trace.start_if_due(number)
            jax.block_until_ready(jax.numpy.ones(3) + number)
            if trace.is_last(number):
                trace.stop()
    assert bool(list((tmp_path / "profile").rglob("*.xplane.pb"))) == traced


def test_a_run_that_goes_on_or_stops_within_the_traced_steps(tmp_path):
    with Trace(ProfileConfig(start=2, steps=4), tmp_path / "profile", 9) as trace:
        trace.start_if_due(4)  # the run resumed here and stopped before the last traced step
        assert not trace.is_last(4)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_mean_over_nothing_is_null():
    assert json_value(math.nan) is None
    assert json_value(math.inf) is None
    assert json_value(0.5) == 0.5
