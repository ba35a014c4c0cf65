"""A run of `care_jax.train` has the numbers of TRL's trainer at every step: golden/trl, made by make_golden_trl.py."""

import json
import pathlib

import numpy as np
import pytest

import care_jax

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "trl"


def run_like(golden, folder):
    """The lines of metrics.jsonl of a run on the golden's own rows, in its order, with its hyperparameters."""
    rows = [row for step in golden["steps"] for row in step["rows"]]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = care_jax.train(
        {
            "output_dir": str(folder / "run"),
            "model": {"path": str(GOLDEN / "model"), "dtype": "float32", "remat": "none"},
            "data": {
                "train": [{"reader": "tokenized", "path": str(data)}],
                "eval": [],
                "shuffle": False,
                "max_length": 32,
            },
            "batch": {"examples": golden["batch"]["examples"], "row_length": 64, "microbatch_rows": 4},
            "loss": golden["loss"],
            "optimizer": golden["optimizer"],
            "checkpoint": {"every": None},
            "trackers": [],
        }
    )
    return run.metrics


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["dpo", "kto", "simpo"])
def test_eight_steps_are_those_of_trl(name, tmp_path):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    lines = run_like(golden, tmp_path)
    assert [line["step"] for line in lines] == [step["step"] for step in golden["steps"]]
    for line, step in zip(lines, golden["steps"]):
        compared = {key: value for key, value in step.items() if key not in ("step", "rows")}
        if name == "simpo":
            # CPOTrainer logs means per token as logps/*; ours are sums. They are compared by the rewards, which are
            # beta times the mean per token.
            for side in ("chosen", "rejected"):
                per_token = compared.pop(f"logps/{side}")
                beta = golden["loss"]["beta"]
                np.testing.assert_allclose(line[f"rewards/{side}"] / beta, per_token, rtol=0, atol=1e-4)
        if name == "dpo" and step["step"] == 1 and line["rewards/accuracies"] != compared["rewards/accuracies"]:
            assert abs(line["rewards/margins"]) < 1e-6, "the policy is its reference: rewards differ by rounding only"
            compared.pop("rewards/accuracies")
        for key, value in compared.items():
            np.testing.assert_allclose(line[key], value, rtol=0, atol=1e-4, err_msg=f"step {step['step']}, {key}")
