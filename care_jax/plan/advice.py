"""The nearest change of a configuration that fits, found by trying: each is compiled before it is told."""

from collections.abc import Iterator
from typing import Any

from care_jax.config import Config
from care_jax.errors import UserError
from care_jax.models.arch import Arch
from care_jax.plan import MEMORY_FRACTION, Advice, Say, prepare
from care_jax.plan.programs import compile_forward, compile_train, least
from care_jax.plan.shapes import Shapes
from care_jax.plan.targets import Target

Changes = dict[str, Any]


def candidates(config: Config, parts: int, spread: Changes) -> Iterator[Changes]:
    """Changes from the nearest to the farthest: what leaves the numbers alone, what rounds them, other weights.

    parts: devices that share the rows; a microbatch has at least one row for each. spread: what puts the state over all
    of them, not a copy for each part of them; empty where it is, or where it does not divide.
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
        adapters = {"model.lora": {"r": 16}}
        yield adapters
        if smallest:
            yield {**smallest, **adapters}


def nearest_that_fits(config: Config, target: Target, arch: Arch, say: Say) -> Advice:
    """Tries changes in turn; one whose arrays alone are too many is passed over without compiling it."""
    assert target.memory is not None
    limit = MEMORY_FRACTION * target.memory
    mesh = prepare(config, target, arch).mesh.shape

    def prepared(changes: Changes) -> Shapes | None:
        try:
            return prepare(Config.from_any(config, **changes), target, arch)
        except UserError:  # a mesh that does not divide the model
            return None

    spread: Changes = {"mesh.data": 1, "mesh.fsdp": -1}
    if config.mesh.tensor == -1:
        spread["mesh.tensor"] = mesh["tensor"]
    if mesh["data"] == 1 or prepared(spread) is None:
        spread = {}
    seen = [config]
    for changes in candidates(config, mesh["data"] * mesh["fsdp"], spread):
        made = prepared(changes)
        if made is None or made.config in seen or least(made) > limit:
            continue
        seen.append(made.config)
        shown = shown_changes(changes)
        say(f"trying {' '.join(shown)}")
        largest, _ = compile_train(made, say)
        if largest.total <= limit:
            largest = max([largest, *compile_forward(made, say)], key=lambda program: program.total)
        if largest.total <= limit:
            return Advice(shown, largest, tried=len(seen) - 1)
    return Advice(None, None, tried=len(seen) - 1)


def shown_changes(changes: Changes) -> tuple[str, ...]:
    """As the command line takes them."""

    def value(given: Any) -> str:
        if isinstance(given, dict):
            return "{" + ", ".join(f"{key}: {inner}" for key, inner in given.items()) + "}"
        return str(given)

    return tuple(f"{key}={value(given)}" for key, given in changes.items())
