"""`care-jax score`, `generate` and `export` on tiny models: their output, and mistakes of a user.

Also tests `training/forward/score.py`.
"""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from care_jax import cli, models, sharding
from care_jax.data.chat import encode, load_tokenizer
from care_jax.data.rows.files import SAMPLE
from care_jax.evaluation.model import open_model
from care_jax.training import loop

CONFIG = {
    "model_type": "llama", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "initializer_range": 0.2,
}  # fmt: skip
LORA = {"r": 2, "alpha": 8, "base_dtype": "float32"}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """One device, as on a user's CPU; the test session has eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny pretrained model with the sample's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    source = shutil.copytree(SAMPLE / "model", folder.with_name("source"))
    (source / "config.json").write_text(json.dumps(CONFIG))
    model = models.from_config(source)
    models.save_pretrained(folder, model, models.init_params(model, 0), source=source)
    return folder


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """A finished run of ten steps that trained adapters; the checkpoints of five and ten."""
    return train_adapters(base, tmp_path_factory.mktemp("runs") / "adapted")


def train_adapters(base, folder):
    data = {
        "train": [{"reader": "care", "path": "sample", "cultures": ["chinese"]}],
        "epochs": None,
        "max_steps": 10,
        "max_length": 128,
    }
    return loop.train(
        {
            "output_dir": str(folder),
            "model": {"path": str(base), "dtype": "float32", "remat": "none", "lora": LORA},
            "data": data | {"eval": {"questions": 2}},
            "batch": {"examples": 4, "row_length": 128, "microbatch_rows": 4},
            "optimizer": {"learning_rate": 1e-2, "warmup": 0},
            "checkpoint": {"every": 5, "keep": 2},
            "eval_every": None,
            "trackers": [],
        }
    )


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- score -----------------------------------------------------------------------------------------------------------

ROWS = [
    {"question": "What is tea?", "response": "A drink.", "rating": 7},
    {"question": "Who was Kong Zi?", "response": "A teacher of long ago.", "rating": 3},
    {"question": "What is tea?", "response": "A drink.", "rating": 7},  # a duplicate
    {"question": "What is tea?", "response": "", "rating": 7},
    {"question": "What is tea?", "response": "Leaves in hot water.", "rating": "many"},
    {"question": "Who was Kong Zi?", "response": "A drink.", "rating": 1},
]


def unpacked_logp(base, question, response):
    """(logp, tokens) of one response, from all logits of a row that holds nothing else."""
    model, params = models.from_pretrained(base)
    turns = ({"role": "user", "content": question},), ({"role": "assistant", "content": response},)
    prompt, completion = encode(load_tokenizer(str(base)), *turns)
    ids = jnp.asarray([*prompt, *completion], jnp.int32)
    logps = jax.nn.log_softmax(model.apply({"params": params}, ids[None])[0])
    return float(sum(logps[place - 1, ids[place]] for place in range(len(prompt), len(ids)))), len(completion)


def test_every_row_has_a_line_also_duplicates(base, tmp_path, capsys):
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "new" / "scores.jsonl"
    assert cli.main(["score", "--model", str(base), "--data", data, "--out", str(out)]) == 0
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "6 rows, 5 responses; dropped: 1 empty response" in streams.err
    scores = lines(out)
    assert [(line["row"], line["field"]) for line in scores] == [(row, "response") for row in (0, 1, 2, 4, 5)]
    assert list(scores[0]) == ["row", "field", "logp", "tokens"]
    for line in (scores[0], scores[-1]):
        row = ROWS[line["row"]]
        logp, tokens = unpacked_logp(base, row["question"], row["response"])
        assert line["tokens"] == tokens
        np.testing.assert_allclose(line["logp"], logp, rtol=1e-5)
    np.testing.assert_allclose(scores[2]["logp"], scores[0]["logp"], rtol=1e-5)
    assert sorted(path.name for path in out.parent.iterdir()) == ["scores.jsonl"]


def test_pairs_have_two_lines_per_row(base, tmp_path):
    pair = {"prompt": "Tea is", "chosen": " a drink.", "rejected": " a stone."}
    data, out = write(tmp_path / "pairs.jsonl", [pair, pair | {"rejected": " a drink."}]), tmp_path / "scores.jsonl"
    words = ["score", "--reader", "preferences", "--model", str(base), "--data", data, "--out", str(out)]
    assert cli.main(words) == 0
    scores = lines(out)
    names = [(row, field) for row in (0, 1) for field in ("chosen", "rejected")]
    assert [(line["row"], line["field"]) for line in scores] == names
    np.testing.assert_allclose(scores[2]["logp"], scores[3]["logp"], rtol=1e-5)


# --- generate --------------------------------------------------------------------------------------------------------


def prompts_file(tmp_path):
    """Prompts that need more answers than one batch holds."""
    rows = [{"id": number, "question": f"Who is number {number}?"} for number in range(8)]
    rows += [{"id": 8, "prompt": [{"role": "user", "content": "And you?"}]}, {"id": 9, "prompt": "Tea is"}, {"id": 10}]
    return write(tmp_path / "prompts.jsonl", rows)


def generate(base, data, out, *more):
    return cli.main(["generate", "--model", str(base), "--data", data, "--out", str(out), "--max-tokens", "3", *more])


def test_a_file_that_was_cut_off_is_completed_to_the_same_bytes(base, tmp_path, capsys):
    data, out = prompts_file(tmp_path), tmp_path / "answers.jsonl"
    assert generate(base, data, out, "--n", "2") == 0
    assert "20 answers to 10 rows; dropped: 1 missing field" in capsys.readouterr().err
    complete = out.read_bytes()
    answers = lines(out)
    assert [line["id"] for line in answers] == [number for number in range(10) for _ in range(2)]
    assert list(answers[0]) == ["id", "question", "response", "finish_reason", "system"]
    assert {line["system"] for line in answers} == {"tiny"}
    assert {line["finish_reason"] for line in answers} <= {"stop", "length"}
    assert len({line["response"] for line in answers}) > 10
    for end in (complete.rindex(b"{") + 7, len(b"".join(complete.splitlines(True)[:5]))):  # within a line; after a line
        out.write_bytes(complete[:end])
        assert generate(base, data, out, "--n", "2") == 0
        assert out.read_bytes() == complete
    assert generate(base, data, out, "--n", "2") == 0  # finished: nothing to do
    assert out.read_bytes() == complete


def test_greedy_answers_do_not_depend_on_the_seed(base, tmp_path):
    data = prompts_file(tmp_path)
    greedy = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for seed, out in enumerate(greedy):
        assert generate(base, data, out, "--temperature", "0", "--limit", "2", "--seed", str(seed)) == 0
    assert greedy[0].read_bytes() == greedy[1].read_bytes()
    assert len(lines(greedy[0])) == 2


def test_answers_to_another_input_are_not_continued(base, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert generate(base, write(tmp_path / "a.jsonl", [{"question": "Tea?"}]), out) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert generate(base, write(tmp_path / "b.jsonl", [{"question": "Coffee?"}]), out) == 2
    assert "(line 1): the answer to another row than row 0" in capsys.readouterr().err
    assert out.read_bytes() == before


# --- adapters, and export --------------------------------------------------------------------------------------------


def test_adapters_start_as_the_base_and_only_they_are_trained(adapted, base):
    lines_ = adapted.metrics
    losses = [line["loss"] for line in lines_ if "loss" in line]
    assert abs(losses[0] - np.log(2)) < 1e-4
    assert losses[-1] != losses[0]
    before, after = load_file(base / "model.safetensors"), load_file(adapted.path / "export" / "model.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj." in name}


def test_a_checkpoint_of_adapters_does_not_hold_the_base(adapted, base):
    size = sum(path.stat().st_size for path in (adapted.path / "checkpoints" / "10").rglob("*") if path.is_file())
    assert 0 < size < (base / "model.safetensors").stat().st_size / 2


def test_a_resumed_run_of_adapters_equals_an_uninterrupted_one(adapted, base, tmp_path):
    folder = shutil.copytree(adapted.path, tmp_path / "again")
    shutil.rmtree(folder / "export")
    shutil.rmtree(folder / "checkpoints" / "10")
    again = train_adapters(base, folder)
    first, second = (load_file(run.path / "export" / "model.safetensors") for run in (adapted, again))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


def test_after_ten_steps_the_merged_export_equals_the_adapters_applied(adapted, base, tmp_path, capsys):
    run, merged, alone = str(adapted.path), tmp_path / "merged", tmp_path / "adapter"
    assert cli.main(["export", run, str(merged)]) == 0
    assert "step 10" in capsys.readouterr().err
    assert (merged / "model.safetensors").read_bytes() == (adapted.path / "export" / "model.safetensors").read_bytes()
    assert load_tokenizer(str(merged)).chat_template
    assert cli.main(["export", run, str(alone), "--adapter"]) == 0
    model, params = models.from_pretrained(base)
    with_adapters, adapters = models.lora.load_adapter(alone, model)
    tokens = jnp.arange(20, dtype=jnp.int32)[None] + 5
    applied = with_adapters.apply({"params": params, "lora": adapters}, tokens)
    as_exported = model.apply({"params": models.from_pretrained(merged)[1]}, tokens)
    np.testing.assert_allclose(as_exported, applied, atol=1e-4)
    assert np.abs(applied - model.apply({"params": params}, tokens)).max() > 1e-2
    opened = open_model(str(alone), sharding.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, opened.params, models.from_pretrained(merged)[1])
    assert opened.folder == base, "the tokenizer and the stop tokens are those of the base"
    config = json.loads((alone / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 8.0, str(base))


def test_the_adapters_of_a_full_run_do_not_exist(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: {path: sample}\ndata: {train: [{reader: care, path: sample}]}\n")
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out"), "--adapter"]) == 2
    assert "--adapter" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["score", "--model", "sample", "--data", "nowhere.jsonl", "--out", "o"], "nowhere.jsonl"),
        (["score", "--model", "./nowhere", "--data", "sample", "--out", "o"], "./nowhere"),
        (["score", "--model", "sample", "--data", "sample", "--out", "o", "--reader", "carre"], "care"),
        (["score", "--model", "sample", "--data", "sample", "--out", "o", "--dtype", "float8"], "float8"),
        (["generate", "--model", "sample", "--data", "empty.jsonl", "--out", "o"], "question"),
        (["generate", "--model", "sample", "--data", "sample", "--out", "o", "--top-p", "2"], "--top-p"),
        (["generate", "--model", "sample", "--data", "sample", "--out", "o", "--n", "0"], "--n"),
        (["generate", "--model", "sample", "--data", "sample", "--out", "o", "--temperature", "inf"], "--temperature"),
        (["score", "--reader", "tokenized", "--model", "sample", "--data", "ids.jsonl", "--out", "o"], "row 1"),
        (["generate", "--model", "sample", "--data", "empty.jsonl", "--out", "empty.jsonl"], "is the data"),
        (["export", "nowhere", "o"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty.jsonl", [{"text": "nothing asked"}])
    ids = {"prompt_ids": [1, 5], "completion_ids": [7], "label": True}
    write(tmp_path / "ids.jsonl", [ids, ids | {"completion_ids": [8, 99_999]}])
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert named in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()
