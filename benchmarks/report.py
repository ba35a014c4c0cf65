"""Writes docs/performance.md from the records in benchmarks/results.

python benchmarks/report.py
"""

import json
import pathlib
from typing import Any

import harness

TARGET = pathlib.Path(__file__).parents[1] / "docs" / "performance.md"

INTRO = """# Performance

Written by `python benchmarks/report.py` from the records of the benchmarks in `benchmarks/results/`; no number is typed
by hand. In every round each case runs once, in turn, in one process. A ratio is of medians (or minima) within one run.
`temp` is the memory that the compiler plans besides arguments and outputs. `peak` is the resident memory of the process
less what it was before the step. `error` is the largest relative difference from one sequence per row: of the loss, and
over the leaves of the gradient of max |a - b| / max |b|.
"""

# Heading of each benchmark's section; those without a record are listed at the end.
TITLES = {
    "against_trl_allpairs": "All pairs of a question: against TRL's DPOTrainer",
    "against_trl_pairs": "One pair per question: against TRL's DPOTrainer",
    "against_trl_care": "SmolLM2 on CARE, all pairs: against TRL's DPOTrainer",
    "against_naive_allpairs": "All pairs: against padded rows and full logits",
    "against_naive_pairs": "One pair per question: against padded rows and full logits",
    "allpairs": "All pairs: the effect of each switch",
    "pairs": "One pair per question: the effect of each switch",
    "head": "The head: chunks against full logits",
    "head_aot": "The head compiled for a TPU that is not here",
    "pack": "Packing",
    "multiple_choice_blend": "Options by log-probability, BLEnD's multiple choice: against lm-evaluation-harness",
    "multiple_choice_letters_3_shots": "The same, letters after three examples",
    "multiple_choice_answers": "The same, options of several tokens",
    "multiple_choice_letters": "The same, letters without examples",
    "epoch": "The loop",
}
COLUMNS = {
    "median": "median s",
    "minimum": "minimum s",
    "first": "first round s",
    "process_median": "process s",
    "fill": "fill",
    "token_slots": "slots",
    "temp_bytes": "temp",
    "peak": "peak",
    "loss_error": "error of the loss",
    "logp_error": "error of a log-probability, nats",
    "gradient_error": "of the gradient",
    "gradient_norm_error": "of its norm",
    "tokens_per_second": "tokens/s",
    "tokens_per_core_second": "tokens/s per core, planned and filled",
    "input_wait_share": "input wait",
    "shapes": "shapes",
    "mfu": "MFU",
}


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    keys = [key for key in COLUMNS if any(values.get(key) is not None for values in results.values())]
    lines = ["| | " + " | ".join(COLUMNS[key] for key in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, values in results.items():
        cells = ["" if values.get(key) is None else harness.format_value(key, values[key]) for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def section(name: str, record: dict[str, Any]) -> list[str]:
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    shapes = ", ".join(f"{key} {value}" for key, value in record["shapes"].items())
    lines = [
        f"## {TITLES[name]}",
        "",
        f"`{record['command']}`: seed {record['seed']}, {record['rounds']} rounds; {shapes}.",
    ]
    lines += [f"Machine: {machine}.", "", *table(record["results"]), ""]
    if record["ratios"]:
        lines += ["| ratio | |", "|---|---|"]
        lines += [f"| {key} | {value:.2f} |" for key, value in record["ratios"].items()] + [""]
    return lines


def main() -> None:
    lines, missing = [INTRO], []
    for name in TITLES:
        path = harness.RESULTS / f"{name}.json"
        if path.exists():
            lines += section(name, json.loads(path.read_text()))
        else:
            missing.append(name)
    if missing:
        lines += ["## Not run", "", "No record: " + ", ".join(missing) + ".", ""]
    aside = TARGET.with_suffix(".partial")
    aside.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    aside.rename(TARGET)
    print(f"written to {TARGET}")


if __name__ == "__main__":
    main()
