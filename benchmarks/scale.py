"""Plans of the recipes on the machines, as in the tables of docs/scale.md.

    python benchmarks/scale.py [WORD ...]     # all of them, or those whose line contains every WORD
    python benchmarks/scale.py --write        # also writes the plans made so far into docs/scale.md

Needs the `plan` extra (libtpu). Each plan is kept in --kept (a folder, by default build/plans), so that the page can be
made in several runs.
"""

import argparse
import json
import pathlib
import sys

import jax

from care_jax import config, plan
from care_jax.plan import targets, text

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- made by benchmarks/scale.py -->", "<!-- end -->"
SHORT = ["data.max_length=1024", "batch.row_length=1024"]
ADAPTERS = ["model.lora={r: 16}"]
MODELS = ("llama3.1-8b", "gemma2-9b", "qwen2.5-7b", "mistral-7b")
LARGE = [f"{loss}-{model}" for loss in ("dpo", "kto", "simpo") for model in MODELS]
SMALL = ["dpo-gemma2-2b", "dpo-qwen2.5-1.5b", "dpo-llama3.2-1b", "dpo-qwen2.5-0.5b"]

# (table, recipe, machine, topology or None: the machine's own, overrides)
LINES = [
    *[(machine, recipe, machine, None, []) for machine in ("v5e-64", "v5p-16") for recipe in LARGE + SMALL],
    *[("h200", recipe, "h200", None, ADAPTERS if "gemma2-9b" in recipe else []) for recipe in LARGE + SMALL],
    *[("gpu-80gb", recipe, "gpu-80gb", None, ADAPTERS) for recipe in LARGE],
    *[("gpu-80gb", recipe, "gpu-80gb", None, []) for recipe in SMALL],
    *[("gpu-24gb", recipe, "gpu-24gb", None, [*ADAPTERS, *(SHORT if "gemma" in recipe else [])]) for recipe in LARGE],
    *[("gpu-24gb", recipe, "gpu-24gb", None, [] if "0.5b" in recipe else ADAPTERS) for recipe in SMALL],
    ("cpu", "quickstart", "cpu", None, []),
    ("not", "dpo-gemma2-9b", "h200", None, []),
    ("not", "dpo-gemma2-9b", "gpu-24gb", None, ADAPTERS),
    ("not", "dpo-llama3.2-1b", "gpu-24gb", None, []),
    ("not", "dpo-llama3.1-8b", "cpu", None, []),
    ("not", "dpo-llama3.1-8b", "v5e-64", "v5e:2x2", ["batch.microbatch_rows=4"]),
    ("prototype", "dpo-llama3.1-8b", "v5e-64", "v5e:8x8", [*SHORT, "batch.examples=16"]),
    ("prototype", "dpo-llama3.1-8b", "v5p-16", "v5p:2x2x1", [*SHORT, "batch.examples=16"]),
    ("grows", "dpo-qwen2.5-72b", "v5p-256", "v5p:4x4x4", []),
    ("grows", "dpo-qwen2.5-72b", "v5p-256", None, []),
    ("grows", "dpo-qwen2.5-72b", "v5p-256", "v5p:4x8x8", ["batch.microbatch_rows=256"]),
]
TITLES = {
    "v5e-64": "64 TPU v5e: up to 9B in full",
    "v5p-16": "8 TPU v5p: up to 9B in full",
    "h200": "One H200: 7-8B in full, 9B with adapters",
    "gpu-80gb": "One GPU of 80 GB: 7-9B with adapters, up to 3B in full",
    "gpu-24gb": "One GPU of 24 GB: adapters (9B in rows of 1024), 0.5B in full",
    "cpu": "One CPU (of this host)",
    "not": "What does not fit",
    "prototype": "8B in full with float32 AdamW, rows of 1024, one microbatch per step",
    "grows": "72B in full as the mesh grows (v5p-256 is 128 chips)",
}


def arguments_of(line) -> str:
    _, recipe, machine, topology, overrides = line
    return " ".join([recipe, machine, *overrides, *([] if topology is None else ["--topology", topology])])


def make_plan(line) -> dict:
    _, recipe, machine, topology, overrides = line
    loaded = config.load(recipe, machine, overrides=overrides)
    (target,) = targets.targets([machine], [] if topology is None else [topology], None)
    result = plan.plan(loaded, target, say=lambda text: print(text, file=sys.stderr, flush=True))
    print(text.as_text(result), flush=True)
    return text.as_json(result)


def row(line, plan_json: dict) -> str:
    train = plan_json["programs"]["train"]
    held = sum(size for name, size in train.items() if name.endswith("_bytes") and name[:5] not in ("tempo", "total"))
    sent = sum(traffic["bytes"] for traffic in train["collectives"].values())
    temporaries = "?" if train["temporaries_bytes"] is None else text.gib(train["temporaries_bytes"])
    verdict = "yes" if plan_json["fits"] else "no"
    if plan_json["advice"] is not None:
        changes = plan_json["advice"]["changes"]
        verdict += f"; with `{' '.join(changes)}`" if changes else "; nothing that was tried does"
    share = f"{100 * plan_json['share']:.0f} %{' (estimate)' if plan_json['estimate'] else ''}"
    ideal = "" if plan_json["ideal_seconds"] is None else f"{plan_json['ideal_seconds']:.2g}"
    tokens = f"{plan_json['microbatches']} x {plan_json['tokens_per_microbatch'] // plan_json['devices'] / 1024:g}k"
    cells = (f"`{arguments_of(line)}`", plan_json["devices"], tokens, text.gib(held), temporaries, share, verdict)
    compiled = sum(program["compile_seconds"] for name, program in plan_json["programs"].items() if name != "reference")
    return "| " + " | ".join(map(str, (*cells, text.gib(sent) if sent else "", ideal, f"{compiled:.0f}"))) + " |"


def page(kept: pathlib.Path) -> str:
    count = sum((kept / f"{slug(line)}.json").exists() for line in LINES)
    lines = [
        f"jax {jax.__version__}; {count} of {len(LINES)} lines planned. State and temporaries are those of the train "
        "step, the share is that of the program that needs most; `PLAN` is `care-jax plan`."
    ]
    for title, heading in TITLES.items():
        files = [(line, kept / f"{slug(line)}.json") for line in LINES if line[0] == title]
        if not any(file.exists() for _, file in files):
            continue
        lines += ["", f"## {heading}", ""]
        lines.append(
            "| `PLAN` ... | devices | microbatches x tokens per device | state and batch, GiB | temporaries, GiB"
            " | share of memory | fits | collectives per microbatch, GiB | ideal s per step | compile s |"
        )
        lines.append("|---" * 10 + "|")
        lines += [row(line, json.loads(file.read_text())) for line, file in files if file.exists()]
    return "\n".join(lines)


def slug(line) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in arguments_of(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--kept", type=pathlib.Path, default=pathlib.Path("build/plans"))
    arguments = parser.parse_args()
    arguments.kept.mkdir(parents=True, exist_ok=True)
    for line in LINES:
        file = arguments.kept / f"{slug(line)}.json"
        if all(word in f"{line[0]} {arguments_of(line)}" for word in arguments.words) and not file.exists():
            print(f"\n$ care-jax plan {arguments_of(line)}", flush=True)
            file.write_text(json.dumps(make_plan(line)))
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{page(arguments.kept)}\n{END}{after}")


if __name__ == "__main__":
    main()
