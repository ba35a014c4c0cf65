"""The shapes of a run, against those of real data."""

import jax
import numpy as np
import pytest

from care_jax import config
from care_jax.config import Config
from care_jax.plan.shapes import abstract_batch, batch_shape_of
from care_jax.training.objective import objective_of


@pytest.fixture
def quickstart():
    return config.load("quickstart", overrides=["data.train.0.cultures=[chinese]", "data.max_length=128"])


@pytest.mark.parametrize("loss", ["dpo", "kto", "plackett_luce"])
def test_abstract_batches_are_those_of_a_real_run(quickstart, tmp_path, loss):
    """With the sizes of a run, the shapes compiled without data are those of the arrays that the run fills."""
    from care_jax.data import pipeline
    from care_jax.data.chat import load_tokenizer
    from care_jax.evaluation.model import local_folder
    from care_jax.training.data import prepare

    changed = Config.from_any(quickstart, **{"loss": {"name": loss}, "data.eval": [], "data.max_steps": 2})
    data = prepare(changed, load_tokenizer(str(local_folder("sample"))), objective_of(changed), tmp_path)
    filled = pipeline.fill(data.source.plan(0), data.corpus)
    expected = abstract_batch(data.source.shape, data.source.mismatched_shape)
    assert jax.tree.structure(filled) == jax.tree.structure(expected)
    for array, shape in zip(jax.tree.leaves(filled), jax.tree.leaves(expected)):
        assert (np.shape(array), np.asarray(array).dtype) == (shape.shape, shape.dtype)
    bound = batch_shape_of(changed, objective_of(changed))
    for name in ("rows", "row_length", "responses", "completion_tokens", "pairs", "lists", "width"):
        assert getattr(bound, name) >= getattr(data.source.shape, name), f"{name}: above its bound"
