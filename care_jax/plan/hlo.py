"""Reads a compiled program's text: its arrays, and which collectives run, how often and with how many bytes."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)}])([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_CONSTANT = re.compile(r" = s32\[\](?:\{[^}]*\})? constant\((\d+)\)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array in the program's text: its element type and its dimensions on one device."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        size = _BYTES.get(self.dtype)
        if size is None:
            bits = re.search(r"\d+", self.dtype)
            size = max(1, int(bits[0]) // 8) if bits else 0
        return size * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction. times: per call of the program; a loop of an unknown number of iterations counts once."""

    name: str
    kind: str
    results: tuple[Array, ...]
    times: int
    text: str


def operations(text: str) -> Iterator[Operation]:
    """Yields every instruction of a module that runs, also in loops and calls."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            current = begins[2]
            bodies[current] = []
            entry = current if begins[1] else entry
        elif current and line.startswith(" "):
            bodies[current].append(line)
    times = Counter({entry: 1})
    # In the text a called computation comes before its callers, so one pass from the end meets each caller first.
    for name in reversed(list(bodies)):
        for line in bodies[name] if times[name] else ():
            trips = _trips(line, bodies) if " while(" in line else 1
            for called in _CALLED.findall(line):
                for callee in re.findall(r"[\w.\-]+", called):
                    if callee in bodies:
                        times[callee] += times[name] * trips
    for name, lines in bodies.items():
        for line in lines:
            instruction = _INSTRUCTION.match(line)
            operation = _OPERATION.search(instruction[2]) if instruction else None
            if instruction and operation and times[name]:
                results = tuple(
                    Array(dtype, tuple(int(size) for size in sizes.split(",") if size))
                    for dtype, sizes in _ARRAY.findall(instruction[2][: operation.start(1)])
                )
                yield Operation(instruction[1], operation[1], results, times[name], line)


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Returns how often a loop runs: the compiler's note, else the only constant in its condition, else 1."""
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    ends = _CONSTANT.findall("\n".join(bodies.get(condition[1], []))) if condition else []
    return int(ends[0]) if len(ends) == 1 else 1


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind per call: how many run, and the bytes of their results on one device."""

    count: int
    bytes: int


def collectives(text: str) -> dict[str, Traffic]:
    """Returns the traffic by kind. The pieces of an overlapped collective share a channel and count as one."""
    by_channel: dict[tuple[str, str], Traffic] = {}
    for operation in operations(text):
        kind = operation.kind.removesuffix("-start")
        if kind not in KINDS:
            continue
        results = operation.results
        if operation.kind.endswith("-start") and len(results) > 1:
            results = (max(results, key=lambda array: array.bytes),)  # the others are its operand and contexts
        channel = _CHANNEL.search(operation.text)
        key = kind, channel[1] if channel else operation.name
        before = by_channel.get(key, Traffic(0, 0))
        size = operation.times * sum(array.bytes for array in results)
        by_channel[key] = Traffic(max(before.count, operation.times), max(before.bytes, size))
    sums: dict[str, Traffic] = {}
    for kind in KINDS:
        traffic = [each for (its_kind, _), each in by_channel.items() if its_kind == kind]
        if traffic:
            sums[kind] = Traffic(sum(each.count for each in traffic), sum(each.bytes for each in traffic))
    return sums
