"""A study whose runs are all finished."""

import numpy as np
import pytest

from care_jax.study import spec
from tests.study.example import finish, study_of


@pytest.fixture
def finished(tmp_path):
    study = study_of(tmp_path)
    for run in spec.planned_runs(study):
        finish(run, np.random.default_rng(run.seed))
    return study
