"""`care-jax evaluate` with a tiny model, an endpoint and files; interrupted answers are continued."""

import functools
import json
import shutil

import jax
import pytest

from care_jax import cli, models, sharding
from care_jax.data.rows.files import SAMPLE
from tests.evaluation.answers.test_logprobs import CONFIG
from tests.evaluation.servers import Server, completion


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    source = shutil.copytree(SAMPLE / "model", folder.with_name("source"))
    (source / "config.json").write_text(json.dumps(CONFIG))
    model = models.from_config(source)
    models.save_pretrained(folder, model, models.init_params(model, 0), source=source)
    return str(folder)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(tmp_path, count=5):
    rows = [
        {"question": f"What is {n}?", "choices": ["tea", "rice"], "answer": n % 2, "country": "China"}
        for n in range(count)
    ]
    return jsonl(tmp_path / "questions.jsonl", rows)


def test_options_by_log_probability(tiny, tmp_path, capsys):
    data, out = questions(tmp_path), tmp_path / "out"
    assert cli.main(["evaluate", "--task", "mcq", "--model", tiny, "--data", data, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    answers = lines(out / "mcq" / "responses.jsonl")
    right = [line["response"] == "AB"[n % 2] for n, line in enumerate(answers)]
    assert result["score"] == pytest.approx(sum(right) / 5)
    assert (result["task"], result["n"], result["missing"], result["method"]) == ("mcq", 5, 0, "logprob")
    assert result["system"] == "tiny"
    assert all(len(line["logps"]) == 2 for line in answers)
    scores = lines(out / "mcq" / "scores.jsonl")
    assert [line["score"] for line in scores] == [float(is_right) for is_right in right]
    # The written answers score the same when they are read as a file, and they make a report.
    words = ["evaluate", "--task", "mcq", "--data", data, "--responses", str(out / "mcq" / "responses.jsonl"), "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["score"] == result["score"]
    assert cli.main(["report", str(out), "--out", str(tmp_path / "report")]) == 0
    assert "| tiny |" in capsys.readouterr().out


def test_answers_of_a_model_continue_where_they_stopped(tiny, tmp_path, capsys):
    data, out = jsonl(tmp_path / "care.jsonl", [
        {"question": f"Who was {n}?", "answer": "gold", "culture_type": "Literacy", "associated_culture": "arab"}
        for n in range(3)
    ]), tmp_path / "out"  # fmt: skip
    words = ["evaluate", "--task", "care_eval", "--model", tiny, "--data", data, "--out", str(out), "--max-tokens", "4"]
    assert cli.main(words) == 0
    assert "no score yet" in capsys.readouterr().out
    path = out / "care_eval" / "responses.jsonl"
    complete = path.read_bytes()
    line = lines(path)[0]
    assert (line["id"], line["culture"], line["category"], line["reference"]) == (
        "arab-0001",
        "arab",
        "literacy",
        "gold",
    )
    path.write_bytes(complete[: complete.index(b"\n") + 20])
    assert cli.main(words) == 0
    assert path.read_bytes() == complete


def test_a_local_checkpoint_as_the_judge(tiny, tmp_path, capsys):
    """Random weights give no rating: all answers count as failed, are cached, and are not asked again."""
    rows = [{"question": f"q{n}?", "response": "a", "reference": "b", "category": "norms"} for n in range(3)]
    source, out = jsonl(tmp_path / "answers.jsonl", rows), tmp_path / "rated.jsonl"
    words = ["judge", "--responses", source, "--out", str(out), "--judge-model", tiny, "--tries", "1", "--json"]
    assert cli.main([*words, "--max-tokens", "3"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["judged"], summary["failed"], summary["mean"]) == (3, 0, 3, None)
    assert all(line["rating"] is None and line["judgement"] for line in lines(out))
    cache = tmp_path / "rated.jsonl.cache.jsonl"
    replies = cache.read_bytes()
    assert len(replies.splitlines()) == 3
    assert cli.main([*words, "--max-tokens", "3"]) == 0
    assert cache.read_bytes() == replies


def test_an_endpoint_answers_in_words(tmp_path, capsys):
    def answer(prompt, before, call):
        if "What is 3?" in prompt:
            return 400, {}, {"error": "no"}, 0.0
        return 200, {}, completion("A"), 0.0

    data, out = questions(tmp_path), tmp_path / "out"
    with Server(answer) as server:
        words = ["evaluate", "--task", "mcq", "--base-url", server.url, "--data", data, "--out", str(out), "--json"]
        assert cli.main(words) == 0
        assert {body["model"] for body in server.bodies} == {"only-one"}
        assert {body["temperature"] for body in server.bodies} == {0.0}
        result = json.loads(capsys.readouterr().out)
        assert (result["score"], result["missing"], result["system"]) == (0.6, 1, "only-one")
        # Only the failed request is asked again.
        (out / "mcq" / "responses.jsonl").unlink()
        assert cli.main(words) == 0
        assert len(server.bodies) == 6
        assert (
            cli.main(["generate", "--base-url", server.url, "--data", data, "--out", str(tmp_path / "g"), "--n", "2"])
            == 0
        )
        assert len({body["seed"] for body in server.bodies if "seed" in body}) == 10
    generated = lines(tmp_path / "g")
    assert len(generated) == 10
    assert generated[0] == {**json.loads((tmp_path / "questions.jsonl").read_text().splitlines()[0]), "response": "A",
                       "finish_reason": "stop", "system": "only-one"}  # fmt: skip


def test_with_an_empty_file_all_answers_are_missing(tmp_path, capsys):
    data, empty = questions(tmp_path), jsonl(tmp_path / "empty.jsonl", [])
    assert cli.main(["evaluate", "--task", "mcq", "--responses", empty, "--data", data, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["missing"], result["failed"], result["score"]) == (5, 5, 0, 0.0)


def test_several_tasks_and_the_list(tmp_path, capsys):
    data, empty = questions(tmp_path), jsonl(tmp_path / "empty.jsonl", [])
    assert cli.main(["evaluate", "--task", "mcq,fork", "--responses", empty, "--data", data, "--json"]) == 0
    assert [json.loads(line)["task"] for line in capsys.readouterr().out.splitlines()] == ["mcq", "fork"]
    assert cli.main(["evaluate", "--list"]) == 0
    assert "statement_pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--task: expected the name of a task"),
        (["--task", "mcq"], "expected one of --model, --base-url, --responses"),
        (["--task", "mcq", "--responses", "none.jsonl", "--data", "questions.jsonl"], "no such file: none.jsonl"),
        (["--task", "mcq", "--responses", "questions.jsonl", "--model", "m"], "leave --model and --base-url out"),
        (["--task", "mcq", "--responses", "questions.jsonl", "--data", "questions.jsonl"], "no response"),
        (["--task", "cloze", "--base-url", "http://127.0.0.1:9", "--model", "m", "--data", "c.jsonl"], "need --model"),
        (["--task", "mcq", "--model", "m", "--columns", "question"], "expected field=column"),
        (["--task", "mcq", "--model", "m", "--limit", "0"], "--limit: found 0"),
    ],
)
def test_mistakes(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    questions(tmp_path)
    jsonl(tmp_path / "c.jsonl", [{"prompt": "a [MASK]", "native": "b", "foreign": "c"}])
    assert cli.main(["evaluate", *words]) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""
