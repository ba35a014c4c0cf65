"""A study of two arms, two grid values and two seeds, and its runs as if they were trained."""

import json

import yaml

from care_jax import config as configs
from care_jax.study import spec

STUDY = {
    "base": "quickstart",
    "arms": {"dpo": {}, "simpo": {"loss": {"name": "simpo", "beta": 2.0}, "optimizer.learning_rate": 2e-3}},
    "grid": {"data.fraction": [0.5, 1.0]},
    "seeds": [0, 1],
    "x": "data.fraction",
    "baseline": "dpo",
}


def study_of(tmp_path, **more):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "output_dir": str(tmp_path / "out"), **more}))
    return spec.load_study(path)


GAIN = {("dpo", 0.5): 0.1, ("dpo", 1.0): 0.2, ("simpo", 0.5): 0.15, ("simpo", 1.0): 0.3}


def finish(run, rng):
    """A finished run as the trainer leaves it: 12 held-out questions, the same for all."""
    (run.folder / "export").mkdir(parents=True)
    (run.folder / "export" / "config.json").write_text("{}")
    (run.folder / "config.yaml").write_text(configs.dump(run.config))
    with open(run.folder / "held_out.jsonl", "w") as file:
        for number in range(12):
            for step in (0, 9):
                start = 0.4 + 0.01 * number
                gain = GAIN[run.arm, run.point["data.fraction"]] * (0.8 + 0.4 * (number % 2)) + 0.02 * run.seed
                value = start if step == 0 else start + gain
                line = {
                    "step": step, "question": f"q{number}", "culture": ("arab", "chinese")[number % 2],
                    "category": ("norms", "literacy", "opinion")[number % 3], "pairs": 4,
                    "rewards/accuracies": None if step == 0 else value, "logps/accuracies": value,
                }  # fmt: skip
                file.write(json.dumps(line) + "\n")
