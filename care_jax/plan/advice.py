"""The nearest change of a configuration that fits. Each change is compiled before it is recommended."""

import dataclasses
from collections.abc import Iterator

from care_jax.config import Config
from care_jax.errors import UserError
from care_jax.hardware import MEMORY_FRACTION
from care_jax.models.arch import Arch
from care_jax.plan.programs import Program, Say, compile_forward, compile_train, smallest_need
from care_jax.plan.shapes import Shapes, shapes_of
from care_jax.plan.targets import Target

Changes = dict[str, object]  # dotted key -> value, as Config.from_any takes them


@dataclasses.dataclass(frozen=True)
class Advice:
    """The nearest change that fits.

    changes: overrides as on the command line; None if nothing fits. program: with these changes, the program that needs
    the most memory. tried: number of configurations that were compiled.
    """

    changes: tuple[str, ...] | None
    program: Program | None
    tried: int


def nearest_that_fits(config: Config, target: Target, arch: Arch, say: Say) -> Advice:
    """Tries changes in turn; skips, without compiling it, one whose arrays alone need too much memory."""
    assert target.memory is not None
    limit = MEMORY_FRACTION * target.memory
    mesh = shapes_of(config, target, arch).mesh.shape

    def shapes_with(changes: Changes) -> Shapes | None:
        try:
            return shapes_of(Config.from_any(config, **changes), target, arch)
        except UserError:  # a mesh that does not divide the model
            return None

    spread: Changes = {"mesh.data": 1, "mesh.fsdp": -1}
    if config.mesh.tensor == -1:
        spread["mesh.tensor"] = mesh["tensor"]
    if mesh["data"] == 1 or shapes_with(spread) is None:
        spread = {}
    seen = [config]
    for changes in candidates(config, mesh["data"] * mesh["fsdp"], spread):
        shapes = shapes_with(changes)
        if shapes is None or shapes.config in seen or smallest_need(shapes) > limit:
            continue
        seen.append(shapes.config)
        overrides = as_overrides(changes)
        say(f"trying {' '.join(overrides)}")
        largest, _ = compile_train(shapes, say)
        if largest.total <= limit:
            largest = max([largest, *compile_forward(shapes, say)], key=lambda program: program.total)
        if largest.total <= limit:
            return Advice(overrides, largest, tried=len(seen) - 1)
    return Advice(None, None, tried=len(seen) - 1)


def candidates(config: Config, parts: int, spread: Changes) -> Iterator[Changes]:
    """Yields changes, the nearest first: those that keep the numbers, those that round them, those of other weights.

    parts: devices that share the rows; a microbatch has at least one row for each. spread: the change that shards the
    state over all of them; empty if it is sharded already, or if they do not divide the model.
    """
    same: Changes = {}
    if config.model.remat != "full":
        same = {"model.remat": "full"}
        yield same
    if spread:
        same = {**same, **spread}
        yield same
    rows = config.batch.microbatch_rows
    fewer: list[Changes] = []
    while rows % 2 == 0 and rows // 2 >= parts and (rows // 2) % parts == 0:
        rows //= 2
        fewer.append({**same, "batch.microbatch_rows": rows})
    yield from fewer
    smallest = fewer[-1] if fewer else same
    rounded: Changes = {"optimizer.accumulate_dtype": "bfloat16"}
    if config.optimizer.name in ("adamw", "lion"):
        rounded["optimizer.moment_dtype"] = "bfloat16"
    if config.model.lora is None:
        yield rounded
        if smallest:
            yield {**smallest, **rounded}
    for tensor in (2, 4, 8):
        if parts % tensor == 0 and config.mesh.tensor == 1:
            yield {**smallest, **({} if config.mesh.fsdp == -1 else {"mesh.fsdp": -1}), "mesh.tensor": tensor}
    if config.model.lora is None:
        adapters: Changes = {"model.lora": {"r": 16}}
        yield adapters
        if smallest:
            yield {**smallest, **adapters}


def as_overrides(changes: Changes) -> tuple[str, ...]:
    """Returns the changes as the command line takes them: `key=value`, mappings as inline YAML."""
    return tuple(f"{key}={value}".replace("'", "") for key, value in changes.items())  # {'r': 16} as {r: 16}
