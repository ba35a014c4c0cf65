"""Shared responses, shared prompts and packed rows change nothing: a step equals that of one sequence per row.

Both run one program, since only the places of the tokens in the batch differ: one compilation per family and loss.
"""

import functools

import jax
import numpy as np
import pytest

from care_jax import losses
from care_jax.data import pipeline
from care_jax.data.chat import Encoded
from care_jax.data.corpus import Corpus, build
from care_jax.data.packing.batch import Batch, BatchShape
from care_jax.data.packing.plans import plan_step
from care_jax.data.preferences import make_units
from care_jax.data.questions import Question, Response
from care_jax.training.step import init_state, make_step
from tests.models.tiny_models import tiny_model
from tests.training.test_step import KEEP_GRADIENT

FAMILIES = ("llama3", "qwen2", "qwen3", "gemma2", "gemma3_text")
LOSSES = ("dpo", "ipo", "simpo", "kto", "plackett_luce")
TOGETHER = {"packing": True, "share_responses": True, "share_prompts": True}
ALONE = dict.fromkeys(TOGETHER, False)
TOLERANCE = 2e-6  # of the loss, and of the norm of each leaf of the gradient


@functools.cache
def corpus() -> Corpus:
    """Three questions with three rated responses each, of a vocabulary of 64."""
    rng = np.random.default_rng(0)
    questions, encodings = [], []
    for number in range(3):
        prompt, *completions = (rng.integers(3, 64, size).tolist() for size in (3 + number, 8, 5 + number, 11))
        rated = tuple(Response(tuple(ids), float(place), "", number) for place, ids in enumerate(completions))
        questions.append(Question(tuple(prompt), rated, str(number)))
        encodings.append(Encoded(prompt, completions))
    return build(questions, encodings, 16)


def batch(view: str, needs_kl: bool, **switches: bool) -> tuple[Batch, int]:
    """One step over all questions, in a shape that fits with any switches; and how many responses it runs."""
    options = {"desirable_min": 1.0, "undesirable_max": 0.0} if view == "unpaired" else {}
    units = make_units(corpus().questions, view, policy="all", unit="group", **options)
    shape = BatchShape(18, 32, 18, 18 * 16, 16, 4, 3, microbatches=1, **switches)
    plan = plan_step(units, corpus(), shape, shape if needs_kl else None)

    def reference(questions: np.ndarray, responses: np.ndarray) -> np.ndarray:
        return (-20 - 3 * np.sin(questions + 2.0 * responses)).astype(np.float32)

    made = pipeline.fill(plan, corpus(), ref_logps=reference)
    return made, int(np.count_nonzero(made.completion_slots[0, 1:] != made.completion_slots[0, :-1]))


def covering() -> list:
    """Every family and every loss once; all combinations with --slow."""
    return [
        pytest.param(family, name, marks=[] if place == at else pytest.mark.slow)
        for at, family in enumerate(FAMILIES)
        for place, name in enumerate(LOSSES)
    ]


def step(family: str, name: str):
    """A function from a batch to loss and gradient, the loss's signature, and the program, which is compiled once."""
    tiny, loss = tiny_model(family), losses.get(name)
    program = jax.jit(make_step(tiny.model, loss, KEEP_GRADIENT))

    def run(given: Batch):
        after, metrics = program(init_state(tiny.params, KEEP_GRADIENT), given)
        return metrics["loss"], after.opt_state

    return run, losses.spec(loss), program


@pytest.mark.parametrize(("family", "name"), covering())
def test_packed_and_shared_is_one_row_a_sequence(family, name):
    run, spec, program = step(family, name)
    together, few = batch(spec.view, spec.needs_kl, **TOGETHER)
    alone, many = batch(spec.view, spec.needs_kl, **ALONE)
    assert few == 9
    assert many == (18 if spec.view == "pairs" else 9), "without sharing, every pair runs both of its responses"
    assert np.count_nonzero(together.segment_ids.any(axis=-1)) < 9 <= np.count_nonzero(alone.segment_ids.any(axis=-1))
    (loss, gradient), (expected_loss, expected) = run(together), run(alone)
    assert program._cache_size() == 1
    np.testing.assert_allclose(loss, expected_loss, rtol=TOLERANCE)
    for (path, found), oracle in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(expected)):
        size = np.linalg.norm(oracle)
        assert size > 0, jax.tree_util.keystr(path)
        assert np.linalg.norm(found - oracle) <= TOLERANCE * size, jax.tree_util.keystr(path)
