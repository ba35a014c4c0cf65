"""A plan as text for people and as a JSON object for programs."""

import dataclasses

from care_jax.hardware import GIB, MEMORY_FRACTION
from care_jax.plan.planning import Plan
from care_jax.plan.programs import Program
from care_jax.textfiles import JsonObject


def as_json(plan: Plan) -> JsonObject:
    """Returns the plan as JSON. A key that ends in `bytes` is per device; `flops_per_step` is over all devices."""
    target, advice = plan.target, plan.advice
    changes = None if advice is None or advice.changes is None else list(advice.changes)
    total = None if advice is None or advice.program is None else advice.program.total
    return {
        "name": plan.config.name,
        "model": plan.config.model.path,
        "target": target.name,
        "devices": len(target.devices),
        "mesh": plan.mesh,
        "memory_bytes": target.memory,
        "estimate": target.estimate,
        "tokens_per_microbatch": plan.rows * plan.row_length,
        "microbatches": plan.microbatches,
        "programs": {program.name: _program(program) for program in plan.programs},
        "largest": plan.largest.name,
        "share": None if target.memory is None else plan.largest.total / target.memory,
        "flops_per_step": plan.programs[0].flops,
        "ideal_seconds": plan.ideal_seconds,
        "fits": plan.fits,
        "advice": None if advice is None else {"changes": changes, "total_bytes": total, "tried": advice.tried},
    }


def _program(program: Program) -> JsonObject:
    return {
        **{f"{name}_bytes": size for name, size in program.array_bytes.items()},
        "temporaries_bytes": program.temporaries,
        "total_bytes": program.total,
        "collectives": {kind: dataclasses.asdict(traffic) for kind, traffic in program.collectives.items()},
        "compile_seconds": round(program.compile_seconds, 1),
    }


def as_text(plan: Plan) -> str:
    """Returns a table of the programs, what a step computes and sends, and whether the run fits."""
    target = plan.target
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    chip = target.chip.name if target.chip is not None else target.name
    memory = "memory unknown" if target.memory is None else f"{gib(target.memory)} GiB per device"
    lines = [
        f"{plan.config.name} ({plan.config.model.path}) on {target.name}: {len(target.devices)} x {chip}, {memory}",
        f"mesh {mesh}",
        f"microbatches of {plan.rows} x {plan.row_length} tokens (the data is not read: each may be a completion's)",
        "",
    ]
    columns = list(dict.fromkeys(name for program in plan.programs for name in program.array_bytes))
    lines.append("GiB/device   " + "".join(f"{name:>12}" for name in (*columns, "temporaries", "total", "share")))
    for program in plan.programs:
        cells = [gib(program.array_bytes[name]) if name in program.array_bytes else "" for name in columns]
        cells.append("?" if program.temporaries is None else gib(program.temporaries))
        share = "" if target.memory is None else f"{100 * program.total / target.memory:.0f} %"
        lines.append(f"{program.name:13}" + "".join(f"{cell:>12}" for cell in (*cells, gib(program.total), share)))
    if target.estimate:
        lines.append("temporaries are an estimate, compiled for this machine's backend; the rest is exact")
    train = plan.programs[0]
    lines += ["", f"one step of {plan.microbatches} microbatch(es): {train.flops / 1e15:.3g} PFLOP in matrix products"]
    if plan.ideal_seconds is not None and target.chip is not None:
        peak = target.chip.flops * len(target.devices)
        lines[-1] += f"; at {peak / 1e15:.3g} PFLOP/s ({target.chip.source}) ideally {plan.ideal_seconds:.2g} s"
    for collective, traffic in train.collectives.items():
        lines.append(f"  {collective}: {traffic.count}, {gib(traffic.bytes)} GiB in total, per microbatch and device")
    lines += ["", verdict(plan)]
    return "\n".join(lines)


def verdict(plan: Plan) -> str:
    """Returns whether the plan fits, and which change makes it fit."""
    target, largest = plan.target, plan.largest
    if target.memory is None or plan.fits is None:
        return f"needs {gib(largest.total)} GiB per device ({largest.name}); this backend reports no limit"
    share = f"{gib(largest.total)} of {gib(target.memory)} GiB, {100 * largest.total / target.memory:.0f} %"
    if plan.fits:
        return f"fits: {share} ({largest.name})"
    text = f"does not fit: {share} ({largest.name}); at most {100 * MEMORY_FRACTION:.0f} % may be used"
    advice = plan.advice
    if advice is None:
        return text
    if advice.changes is None or advice.program is None:
        tried = f"nothing that was tried fits ({advice.tried} compiled)"
        return f"{text}\n{tried}: use more or larger devices, or a smaller model"
    changes = " ".join(f"'{change}'" if " " in change else change for change in advice.changes)
    return f"{text}\nthe nearest change that fits: {changes} ({gib(advice.program.total)} GiB per device)"


def gib(size: int) -> str:
    """Returns bytes as GiB, with three digits."""
    return f"{size / GIB:.3g}" if size < 100 * GIB else f"{size / GIB:.0f}"
