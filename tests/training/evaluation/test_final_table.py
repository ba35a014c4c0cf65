"""The table that ends a run: the first evaluation and the last, all pairs and by group."""

from care_jax.training.evaluation.final_table import final_table


def line(step, accuracy, rewards):
    names = {"logps/accuracies": accuracy, "rewards/accuracies": rewards, "rewards/margins": 0.5}
    prefixes = ("eval", "eval/chinese")
    return {
        "step": step,
        "eval/loss": 0.1,
        **{f"{prefix}/{name}": v for prefix in prefixes for name, v in names.items()},
    }


def test_before_and_after_by_group():
    table = final_table([line(0, 0.5, None), {"step": 1, "loss": 1.0}, line(1, 0.7, 0.9), line(2, 0.75, 1.0)])
    head, everything, chinese = table.splitlines()
    assert head.split()[:2] == ["held", "out"]
    assert everything.split() == ["all", "0.500", "0.750", "-", "1.000", "0.500", "0.500"]
    assert chinese.split()[0] == "chinese"


def test_a_run_without_evaluation():
    assert final_table([{"step": 1, "loss": 1.0}]) == "no evaluation was run"
