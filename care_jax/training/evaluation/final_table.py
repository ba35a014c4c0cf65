"""The table that ends a run: what it learned on held-out questions, by culture."""

from collections.abc import Sequence

from care_jax.textfiles import JsonObject

COLUMNS = (
    ("accuracy by logps, before", "before", "logps/accuracies"),
    ("after", "after", "logps/accuracies"),
    ("by rewards, before", "before", "rewards/accuracies"),
    ("after", "after", "rewards/accuracies"),
    ("margin, before", "before", "rewards/margins"),
    ("after", "after", "rewards/margins"),
)


def final_table(lines: Sequence[JsonObject]) -> str:
    """Returns held-out accuracy and margin before and after training, over all pairs and by culture and category.

    lines: lines of metrics.jsonl. "by logps" compares log-probabilities per token, so it means something before
    training too. If the policy is its own reference, all pairs are ties by rewards, and that accuracy is shown as -.
    """
    evaluations = [line for line in lines if "eval/loss" in line]
    if not evaluations:
        return "no evaluation was run"
    when = {"before": evaluations[0], "after": evaluations[-1]}
    ending = "/logps/accuracies"
    groups = [
        name[len("eval/") : -len(ending)] for name in when["after"] if name.endswith(ending) and name.count("/") > 2
    ]
    rows = [["held out", *(title for title, _, _ in COLUMNS)]]
    for label, prefix in (("all", "eval"), *((group, f"eval/{group}") for group in groups)):
        cells = [when[time].get(f"{prefix}/{name}") for _, time, name in COLUMNS]
        rows.append([label, *("-" if cell is None else f"{cell:.3f}" for cell in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)
