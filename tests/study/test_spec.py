"""The runs and systems that a study stands for, and what is refused."""

import pytest

from care_jax.config import files
from care_jax.errors import UserError
from care_jax.study import spec, stages
from tests.study.example import study_of


def test_every_arm_point_and_seed_is_a_run(tmp_path):
    study = study_of(tmp_path)
    runs = spec.planned_runs(study)
    assert len(runs) == 8
    last = runs[-1]
    assert last.name == "simpo_fraction=1.0_seed=1"
    assert (last.config.loss.name, last.config.loss.hyperparameters["beta"]) == ("simpo", 2.0)
    assert (last.config.data.fraction, last.config.seed) == (1.0, 1)
    assert last.config.optimizer.learning_rate == 2e-3
    assert runs[0].config.optimizer.learning_rate == 1e-3
    assert len({run.config.output_dir for run in runs}) == 8


@pytest.mark.parametrize("name", files.shipped_names("study"))
def test_the_shipped_studies_are_complete(name):
    study = spec.load_study(name)
    runs = spec.planned_runs(study)
    stages.check_tasks(study)
    assert runs
    assert spec.list_systems(study, runs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"dpo": {"optimizer.learning_rat": 1}}}, r"arm dpo.*optimizer.learning_rat: unknown key"),
        ({"grid": {"data.fraction": []}}, r"grid.data.fraction: found an empty list"),
        ({"x": "seed"}, r"x: found 'seed'.*expected a key of the grid"),
        ({"baseline": "dpi"}, r"baseline: found 'dpi' \(did you mean 'dpo'\?\)"),
        ({"seed": [1]}, r"seed: unknown key \(did you mean 'seeds'\?\)"),
        ({"evaluate": [{"task": "care_eval"}]}, r"care_eval is rated by a judge"),
        ({"evaluate": [{"task": "inclde"}]}, r"found 'inclde' \(did you mean 'include'\?\)"),
        ({"train": False}, r"evaluate: found nothing, but train is false"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        stages.run(study_of(tmp_path, **changes))
    assert not (tmp_path / "out" / "runs").exists()


def test_an_unknown_name():
    with pytest.raises(UserError, match=r"no study of that name \(did you mean 'mixing'\?\)"):
        spec.load_study("mixin")
