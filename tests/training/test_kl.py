"""`kl` equals a plain computation on the same tokens, whatever the shape of the batches."""

import functools
import json
import pathlib

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import care_jax
from care_jax import models

MODEL = pathlib.Path(__file__).parents[1] / "golden" / "trl" / "model"
STEPS, EXAMPLES, SEED = 3, 6, 4


def labelled_rows(count=20):
    """Rows of token ids, several of them with the same prompt."""
    rng = np.random.default_rng(0)

    def ids(low, high):
        return rng.integers(4, 64, rng.integers(low, high)).tolist()

    prompts = [[1, *ids(2, 9)] for _ in range(count // 3)]
    return [
        {"prompt_ids": prompts[n % 5 % len(prompts)], "completion_ids": ids(2, 12), "label": bool(n % 2)}
        for n in range(count)
    ]


def log_ratios(rows, places, policy, reference):
    """log policy - log reference of each mismatched completion, computed on padded rows by the plain model."""
    pairs = []
    for n, place in enumerate(places):
        prompt = rows[place]["prompt_ids"]
        # The nearest earlier example of the step (cyclic) with another prompt.
        earlier = (places[n - back] for back in range(1, len(places)))
        other = next(one for one in earlier if rows[one]["prompt_ids"] != prompt)
        pairs.append((prompt, rows[other]["completion_ids"]))
    rows_of_ids = np.zeros((len(pairs), 32), np.int32)
    counted = np.zeros((len(pairs), 31), bool)
    for row, (prompt, completion) in enumerate(pairs):
        rows_of_ids[row, : len(prompt) + len(completion)] = prompt + completion
        counted[row, len(prompt) - 1 : len(prompt) + len(completion) - 1] = True
    tokens = jnp.asarray(rows_of_ids)

    @functools.partial(jax.jit, static_argnums=0)
    def logps(model, params):
        logp = jax.nn.log_softmax(model.apply({"params": params}, tokens))[:, :-1]
        taken = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(counted, taken, 0), axis=1)

    return np.asarray(logps(*policy) - logps(*reference), np.float64)


@pytest.mark.usefixtures("one_device")
def test_kl_is_the_mean_log_ratio_of_mismatched_completions(tmp_path):
    rows = labelled_rows()
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, params = models.from_pretrained(MODEL)
    moved = jax.tree.map(lambda x: x + 0.03 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    models.save_pretrained(tmp_path / "other", model, moved, source=MODEL)

    def run(name, **batch):
        return care_jax.train(
            {
                "output_dir": str(tmp_path / name),
                "seed": SEED,
                "model": {"path": str(MODEL), "dtype": "float32", "remat": "none"},
                "data": {
                    "train": [{"reader": "tokenized", "path": str(data)}],
                    "eval": [],
                    "epochs": None,
                    "max_steps": STEPS,
                    "max_length": 32,
                },
                "batch": {"examples": EXAMPLES, **batch},
                "loss": {"name": "kto"},
                "reference": {"path": str(tmp_path / "other")},
                # The policy does not change, so every step has the same weights.
                "optimizer": {"learning_rate": 0.0},
                "checkpoint": {"every": None},
                "trackers": [],
            }
        ).metrics

    order = grain.MapDataset.range(len(rows)).shuffle(seed=SEED)
    packed = run("packed", row_length=64, microbatch_rows=4)
    plain = run("plain", row_length=32, microbatch_rows=2, packing=False)
    clamped = 0
    for step in range(STEPS):
        places = [order[n] for n in range(step * EXAMPLES, (step + 1) * EXAMPLES)]
        ratios = log_ratios(rows, places, (model, params), (model, moved))
        expected = {
            "kl": max(ratios.mean(), 0.0),
            "kl/unclamped": ratios.mean(),
            "kl/stderr": ratios.std(ddof=1) / np.sqrt(EXAMPLES),
        }
        clamped += ratios.mean() < 0
        for lines in (packed, plain):
            for name, value in expected.items():
                np.testing.assert_allclose(lines[step][name], value, rtol=0, atol=1e-4, err_msg=name)
    assert 0 < clamped < STEPS, "some steps must be clamped, and some not"
