"""The metrics of a run: metrics.jsonl always, TensorBoard and Weights & Biases if configured."""

import io
import json
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import TypeAlias

import jax
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from care_jax import distributed
from care_jax.distributed import is_writer
from care_jax.hardware import CHIPS
from care_jax.textfiles import JsonObject, progress_bar, read_lines
from care_jax.training.context import RunContext

Metrics: TypeAlias = Mapping[str, object]

# The order of a step's line. The first ones are always there: null if a step has no such value.
_ALWAYS = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)
_STEP_NAMES = (*_ALWAYS, "kl", "kl/unclamped", "kl/stderr", "grad_norm", "learning_rate")


class Recorder:
    """Writes the metrics of steps and evaluations to every tracker, and shows the progress on stderr.

    One process of several writes.
    """

    def __init__(self, run: RunContext, resume_step: int | None, total: int):
        """total: number of steps of the run."""
        config, folder, self._upload = run.config, run.directory.folder, run.directory.upload
        self._file = MetricsFile(folder / "metrics.jsonl", resume_step)
        self._trackers: list[MetricsFile | TensorBoard | WandB] = [self._file]
        if is_writer() and "tensorboard" in config.trackers:
            self._trackers.append(TensorBoard(folder / "tensorboard", resume_step))
        if is_writer() and "wandb" in config.trackers:
            self._trackers.append(WandB(config.name, folder, config.model_dump(mode="json")))
        self._log_every, self._total = config.log_every, total
        self._bar = progress_bar(total, config.name, "step", resume_step or 0, hidden=not is_writer())
        self._last_recorded = time.perf_counter()
        self._input_wait = 0.0
        self._compile_seconds: float | None = None

    @property
    def lines(self) -> list[JsonObject]:
        """The lines of metrics.jsonl so far."""
        return self._file.lines

    def start_clock(self) -> None:
        """Starts the time of the first step."""
        self._last_recorded = time.perf_counter()

    def record_compilation(self, seconds: float) -> None:
        """Notes how long the train step took to compile, for the next line of a step."""
        self._compile_seconds = seconds

    def record_input_wait(self, seconds: float) -> None:
        """Adds to the time that the loop waited for input, for the next line of a step."""
        self._input_wait += seconds

    def record_step(
        self, number: int, values: Metrics, batch_facts: JsonObject, flops: float, dispatched: float
    ) -> None:
        """Records a step: names as TRL logs them, then the facts of the batch, then what depends on the clock.

        flops: FLOPs per step, for `mfu`. dispatched: time of the dispatch (time.perf_counter).
        """
        now = time.perf_counter()
        since_last, self._last_recorded = now - self._last_recorded, now
        # The time since the previous step was recorded. On the CPU that step may be recorded only when this one is done
        # too. Then that time is nearly 0 (the test: at most a quarter), and the time since the dispatch is taken.
        seconds = since_last if since_last > (now - dispatched) / 4 else now - dispatched
        names = [name for name in _STEP_NAMES if name in values or name in _ALWAYS]
        line: JsonObject = {
            **{name: values.get(name) for name in names},
            **{name: value for name, value in values.items() if name not in names},
            **batch_facts,
            "tokens_per_second": batch_facts["tokens"] / seconds,
            "step_seconds": seconds,
            "input_wait_seconds": self._input_wait,
            "mfu": mfu(flops / seconds),
            "device_memory_peak_bytes": memory_peak(),
        }
        self._input_wait = 0.0
        shown = {"loss": _format(line["loss"]), "accuracy": _format(line["rewards/accuracies"])}
        self._bar.set_postfix(shown | {"tokens/s": f"{line['tokens_per_second']:.0f}"}, refresh=False)
        self._bar.update(1)
        if number % self._log_every == 0 or number == self._total:
            if self._compile_seconds is not None:
                line["compile_seconds"], self._compile_seconds = self._compile_seconds, None
            self._log(number, line)

    def record_evaluation(self, step: int, values: Metrics) -> None:
        self._log(step, values)
        self._last_recorded = time.perf_counter()  # the next step's time does not include the evaluation

    def _log(self, step: int, line: Metrics) -> None:
        for tracker in self._trackers:
            tracker.log(step, line)

    def sync(self) -> None:
        """Returns when all lines are on disk (and in the bucket): then a checkpoint may commit."""
        self._file.sync()
        self._upload()

    def close(self) -> None:
        self._bar.close()
        for tracker in self._trackers:
            tracker.close()


def mfu(flops_per_second: float) -> float | None:
    """Returns the share of the devices' peak; None if the peak of this kind of device is not known."""
    chip = CHIPS.get(jax.devices()[0].device_kind)
    return None if chip is None else flops_per_second / (chip.flops * jax.device_count())


def memory_peak() -> int | None:
    """Returns the most bytes in use on this process's first device so far; None if the backend does not say (CPU)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


# ---- Trackers


class MetricsFile:
    """metrics.jsonl: one JSON object per line, of a step or of an evaluation. A resume at step n keeps the lines up to
    step n.

    One process of several writes the file; all of them read the lines that are kept.
    """

    def __init__(self, path: pathlib.Path, resume_step: int | None):
        self._file: io.FileIO | None = None
        kept = [] if resume_step is None else [line for line in read_lines(path) if line["step"] <= resume_step]
        self.lines: list[JsonObject] = kept
        distributed.barrier("metrics read")
        if not is_writer():
            return
        aside = path.with_suffix(".jsonl.partial")
        with aside.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
        self._file = path.open("ab", buffering=0)

    def log(self, step: int, metrics: Metrics) -> None:
        line = {"step": step, **{name: json_value(value) for name, value in metrics.items()}}
        self.lines.append(line)
        if self._file is not None:
            _write(self._file, (json.dumps(line) + "\n").encode())

    def sync(self) -> None:
        """Returns when the lines are on disk, not only in the system's memory."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class TensorBoard:
    """Scalars as event records; each is written before `log` returns.

    tensorboardX's own writer is not used: a full disk ends its thread without a message, and the run then waits for it.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int | None):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab", buffering=0)
        self._write_event(file_version="brain.Event:2")
        first = 0 if resume_step is None else resume_step + 1  # TensorBoard discards earlier events from here on
        self._write_event(step=first, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, metrics: Metrics) -> None:
        values = ((name, json_value(value)) for name, value in metrics.items())
        scalars = [
            Summary.Value(tag=name, simple_value=value) for name, value in values if isinstance(value, int | float)
        ]
        self._write_event(step=step, summary=Summary(value=scalars))

    def _write_event(self, **fields: object) -> None:
        """Writes a TFRecord: the length, its masked crc32c, the event, its masked crc32c."""

        def masked(data: bytes) -> bytes:
            crc = crc32c(data)
            return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

        event = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        _write(self._file, length + masked(length) + event + masked(event))

    def close(self) -> None:
        self._file.close()


class WandB:
    """Weights & Biases; the key comes from WANDB_API_KEY alone."""

    def __init__(self, name: str, folder: pathlib.Path, config: JsonObject):
        import wandb

        self._run = wandb.init(project="care_jax", name=name, dir=str(folder), config=config, id=name, resume="allow")

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log({name: json_value(value) for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def json_value(value: object) -> object:
    """Returns a value for JSON: Python's own numbers, and None for one that is not finite (a mean over nothing)."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(file: io.FileIO, data: bytes) -> None:
    """Writes all bytes to an unbuffered file, so that a full disk raises here and not when the file is closed."""
    while data:
        data = data[file.write(data) :]


def _format(value: object) -> str:
    value = json_value(value)
    return f"{value:.3f}" if isinstance(value, int | float) else "-"
