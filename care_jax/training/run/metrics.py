"""Where numbers go: metrics.jsonl always, TensorBoard and Weights & Biases by configuration."""

import json
import math
import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from tqdm import tqdm

from care_jax import distributed
from care_jax.config import Config
from care_jax.distributed import is_writer
from care_jax.hardware import CHIPS
from care_jax.textfiles import read_lines

Metrics = Mapping[str, Any]


class Tracker(Protocol):
    def log(self, step: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


def json_value(value: Any) -> Any:
    """A JSON value: null for what is not a number (a mean over nothing)."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """metrics.jsonl: one object a line, a step's or an evaluation's. A resume at step n keeps the lines up to n."""

    def __init__(self, path: pathlib.Path, resume_step: int | None, writes: bool = True):
        """writes: whether this process of several does; all of them know the lines that are kept."""
        self._file = None
        kept = [] if resume_step is None else [line for line in read_lines(path) if line["step"] <= resume_step]
        self.lines: list[dict[str, Any]] = kept
        distributed.barrier("metrics read")
        if not writes:
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
        """On disk, not only written: a checkpoint may commit after this."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _write(file: Any, data: bytes) -> None:
    """All of it, to an unbuffered file: what a full disk does not take is an error here and now, not at the exit."""
    while data:
        data = data[file.write(data) :]


class TensorBoard:
    """Scalars as event records, each on its way to disk when `log` returns.

    tensorboardX's own writer hands them to a thread; a full disk ends that thread unheard, and the run waits for it.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int | None):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab", buffering=0)
        self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        first = 0 if resume_step is None else resume_step + 1  # what was drawn from there on does not count
        self._record(Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START)))

    def log(self, step: int, metrics: Metrics) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = {name: json_value(value) for name, value in metrics.items()}
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
        self._record(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _record(self, event: Any) -> None:
        """TFRecord: length, its masked crc32c, the data, theirs."""
        from tensorboardX.crc32c import crc32c

        def masked(data: bytes) -> bytes:
            crc = crc32c(data)
            return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        _write(self._file, length + masked(length) + data + masked(data))

    def close(self) -> None:
        self._file.close()


class WandB:
    """Weights & Biases; its key comes from WANDB_API_KEY alone."""

    def __init__(self, name: str, folder: pathlib.Path, config: dict[str, Any]):
        import wandb

        self._run = wandb.init(project="care_jax", name=name, dir=str(folder), config=config, id=name, resume="allow")

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log({name: json_value(value) for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class Recorder:
    """Metrics of steps and evaluations to every tracker, a bar of progress on stderr; one process of several writes."""

    def __init__(
        self,
        config: Config,
        folder: pathlib.Path,
        resume_step: int | None,
        total: int,
        upload: Callable[[], None] = lambda: None,
    ):
        """upload: copies the files of the run to where they must be before a checkpoint may commit."""
        self._upload = upload
        writes = is_writer()
        self._file = MetricsFile(folder / "metrics.jsonl", resume_step, writes)
        self._trackers: list[Tracker] = [self._file]
        if writes:
            if "tensorboard" in config.trackers:
                self._trackers.append(TensorBoard(folder / "tensorboard", resume_step))
            if "wandb" in config.trackers:
                self._trackers.append(WandB(config.name, folder, config.model_dump(mode="json")))
        self._log_every = config.log_every
        self._total = total
        self._bar = tqdm(
            total=total,
            initial=resume_step or 0,
            desc=config.name,
            unit="step",
            disable=not writes,
            mininterval=0.2 if sys.stderr.isatty() else 10,  # a job's log needs no animation
        )
        self._clock = time.perf_counter()
        self._input_wait = 0.0
        self._compile_seconds: float | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self._file.lines

    def start_clock(self) -> None:
        """The time of the first step begins here."""
        self._clock = time.perf_counter()

    def record_compilation(self, seconds: float) -> None:
        """The train step was, before the first one."""
        self._compile_seconds = seconds

    def record_input_wait(self, seconds: float) -> None:
        """The loop stood still for input."""
        self._input_wait += seconds

    def record_step(self, number: int, values: Metrics, host: Metrics, flops: float, dispatched: float) -> None:
        """One step's line: names as TRL logs them, then the batch, then what depends on the clock.

        flops: the step's, for `mfu`. dispatched: when the step was. It took the time since the one before was
        recorded, unless the backend let us record that one only when this one was done too (the CPU's may): then the
        time since it was dispatched.
        """
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        seconds = elapsed if elapsed > (now - dispatched) / 4 else now - dispatched
        names = [name for name in STEP_NAMES if name in values or name in ALWAYS]
        line = {name: values.get(name) for name in names}
        line |= {name: value for name, value in values.items() if name not in names} | dict(host)
        line["tokens_per_second"] = host["tokens"] / seconds
        line["step_seconds"] = seconds
        line["input_wait_seconds"], self._input_wait = self._input_wait, 0.0
        line["mfu"] = mfu(flops / seconds)
        line["device_memory_peak_bytes"] = memory_peak()
        self._bar.set_postfix(
            {
                "loss": _short(line["loss"]),
                "accuracy": _short(line["rewards/accuracies"]),
                "tokens/s": f"{line['tokens_per_second']:.0f}",
            },
            refresh=False,
        )
        self._bar.update(1)
        if number % self._log_every == 0 or number == self._total:
            if self._compile_seconds is not None:  # in the first line of a start alone
                line["compile_seconds"], self._compile_seconds = self._compile_seconds, None
            self._log(number, line)

    def record_evaluation(self, step: int, values: Metrics) -> None:
        self._log(step, values)
        self._clock = time.perf_counter()  # an evaluation is no step's time

    def _log(self, step: int, line: Metrics) -> None:
        for tracker in self._trackers:
            tracker.log(step, line)

    def sync(self) -> None:
        self._file.sync()
        self._upload()

    def close(self) -> None:
        self._bar.close()
        for tracker in self._trackers:
            tracker.close()


ALWAYS = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)
STEP_NAMES = (*ALWAYS, "kl", "kl/unclamped", "kl/stderr", "grad_norm", "learning_rate")


def mfu(flops_per_second: float) -> float | None:
    """Share of the devices' peak, or None where the peak of this kind of device is not known."""
    chip = CHIPS.get(jax.devices()[0].device_kind)
    return None if chip is None else flops_per_second / (chip.flops * jax.device_count())


def memory_peak() -> int | None:
    """The most bytes that this process's first device has held; None where the backend does not say (CPU)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _short(value: Any) -> str:
    value = json_value(value)
    return "-" if value is None else f"{value:.3f}"
