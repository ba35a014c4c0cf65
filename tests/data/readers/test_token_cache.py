"""A token cache gives the same run as its rows, reads ids only when they are needed, and refuses other tokenizers."""

import json
import pickle

import numpy as np
import pytest

from care_jax import cli
from care_jax.data import preferences, readers
from care_jax.data.chat import load_tokenizer
from care_jax.data.corpus import concatenate, tokenize
from care_jax.data.curation import leakage
from care_jax.data.readers.token_cache import TokenCache
from care_jax.errors import UserError
from tests.data.care_rows import care_row, write


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("sample")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "tokens"
    assert cli.main(["data", "prepare", "sample", "--model", "sample", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def both(cache, tokenizer):
    """(from rows, from the cache): readings and corpora."""
    readings = readers.read("care", "sample"), readers.read("prepared", str(cache))
    return readings, tuple(tokenize(reading.questions, tokenizer, "model", 96) for reading in readings)


def same_tokens(a, b):
    for tokens, others in ((a.prompts, b.prompts), (a.completions, b.completions)):
        np.testing.assert_array_equal(tokens.lengths, others.lengths)
        everything = np.arange(len(tokens.lengths))
        np.testing.assert_array_equal(
            tokens.gather(everything, tokens.lengths), others.gather(everything, others.lengths)
        )


def test_the_same_tokens_pairs_and_account(both):
    (rows, cached), (direct, stored) = both
    same_tokens(direct, stored)
    assert direct.truncated > 0
    assert (direct.truncated, direct.boundary_merges) == (stored.truncated, stored.boundary_merges)
    for policy in preferences.POLICIES:
        options = {"policy": policy, "max_per_question": 2, "seed": 3}
        assert preferences.make_units(direct.questions, **options) == preferences.make_units(
            stored.questions, **options
        )
    assert preferences.stratified_order(rows.questions, 0, "x") == preferences.stratified_order(
        cached.questions, 0, "x"
    )
    one, other = rows.report.to_json(), cached.report.to_json()
    assert {k: one[k] for k in ("questions", "responses", "ratings", "by", "pairs")} == {
        k: other[k] for k in ("questions", "responses", "ratings", "by", "pairs")
    }
    assert other["rows"] == other["responses"] + sum(other["dropped"].values())
    assert len(leakage.check(cached.questions, rows.questions)) == len(rows.questions)


def test_joined_with_rows_and_selected(both, cache, tokenizer):
    _, (direct, stored) = both
    joined, offsets = concatenate([direct, stored, stored])
    for part, offset in zip((direct, stored, stored), offsets):
        for question in (0, 5):
            np.testing.assert_array_equal(joined.prompts[offset + question], direct.prompts[question])
            mine, its = joined.response_id(offset + question, 1), part.response_id(question, 1)
            np.testing.assert_array_equal(joined.completions[mine], direct.completions[its])
    some = {"cultures": ["chinese"], "sources": ["human"]}
    same_tokens(
        *(
            tokenize(readers.read(*one, **some).questions, tokenizer)
            for one in (("care", "sample"), ("prepared", str(cache)))
        )
    )


def test_a_start_reads_lengths_only(cache, tokenizer, monkeypatch):
    def never(*_):
        raise AssertionError("ids were read")

    monkeypatch.setattr(TokenCache, "gather", never)
    corpus = tokenize(readers.read("prepared", str(cache)).questions, tokenizer)
    preferences.make_units(corpus.questions, policy="all", unit="group")
    with pytest.raises(AssertionError, match="ids were read"):
        corpus.prompts[0]


def test_only_a_steps_own_records_are_read_and_workers_open_their_own(both):
    cache = both[1][1].prompts.caches[0]
    again = pickle.loads(pickle.dumps(cache))
    for one in (cache, again):
        ids, starts = one.gather(np.asarray([7, 2, 7]))
        assert starts[0] == starts[2] > 0 == starts[1]
        assert len(ids) < 1000


def test_token_ids_and_conversations(tmp_path, tokenizer):
    rows = [{"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]}]
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "C"}]
    talk = [{"prompt": turns, "chosen": "x", "rejected": "y"}, {"prompt": "p", "completion": "c", "label": False}]
    for reader, data in (("tokenized", rows), ("preferences", talk)):
        path = write(tmp_path, data, f"{reader}.jsonl")
        out = str(tmp_path / reader)
        assert cli.main(["data", "prepare", path, "--reader", reader, "--model", "sample", "--out", out]) == 0
        before, after = readers.read(reader, path), readers.read("prepared", out)
        same_tokens(tokenize(before.questions, tokenizer), tokenize(after.questions, tokenizer))
        for one, other in zip(before.questions, after.questions):
            assert [(r.field, r.rating, r.desirable, r.row_number) for r in one.responses] == [
                (r.field, r.rating, r.desirable, r.row_number) for r in other.responses
            ]
        assert before.report.rows == after.report.rows


def test_another_tokenizer_or_template_is_refused(cache, tokenizer, tmp_path):
    questions = readers.read("prepared", str(cache)).questions
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match="the run's chat template differs"):
        tokenize(questions, tokenizer, str(template))
    tokenize(questions, tokenizer, "model", date="2020-02-02")  # this template asks for none
    other = load_tokenizer("sample")
    other.add_tokens(["<new>"])
    with pytest.raises(UserError, match="the run's tokenizer differs"):
        tokenize(questions, other)


def test_mistakes(cache, tmp_path, capsys):
    prepare = ["data", "prepare", "sample", "--model", "sample", "--out", str(cache)]
    assert cli.main(prepare) == 2
    assert "holds a token cache already" in capsys.readouterr().err
    with pytest.raises(UserError, match="read it by `reader: prepared`"):
        readers.read("care", str(cache))
    with pytest.raises(UserError, match="no token cache in this folder"):
        readers.read("prepared", str(tmp_path))
    with pytest.raises(UserError, match="query_language: a token cache holds what it was prepared with"):
        readers.read("prepared", str(cache), query_language="english")
    assert cli.main(["data", "prepare", str(cache), "--reader", "prepared", "--model", "sample", "--out", "x"]) == 2
    assert "are a token cache already" in capsys.readouterr().err
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "prepared.json").write_bytes((cache / "prepared.json").read_bytes())
    (broken / "index.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="has changed since it was prepared"):
        readers.read("prepared", str(broken))


def test_the_account_of_the_rows_stays_with_the_cache(tmp_path, capsys):
    path = write(tmp_path, [care_row(), care_row(human_rating=11), care_row(response="B", human_rating=2)])
    out = tmp_path / "cache"
    assert cli.main(["data", "prepare", path, "--model", "sample", "--out", str(out)]) == 0
    assert "1 questions, 2 responses" in capsys.readouterr().out
    assert json.loads((out / "data_report.json").read_text())["dropped"]["invalid_rating"] == 1
    assert cli.main(["data", "inspect", str(out), "--reader", "prepared"]) == 0
    assert "rows       2" in capsys.readouterr().out
