"""The judge: its requests, failures of the endpoint, batch files, agreement."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from care_jax import cli
from care_jax.evaluation import judge, rubrics
from care_jax.evaluation.endpoint.cache import content_key
from tests.evaluation.servers import Server, completion

CATEGORIES = ("Cultural entities", "Cultural commonsense", "Social norms", "Opinion", "Literacy")


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(count):
    cultures = ("Native (Arab)", "Native (Chinese)", "Native (Japanese)")
    return [
        {
            "question": f"Question <{number}>?", "answer": "gold", "response": f"answer {number}", "system": "m",
            "culture_type": CATEGORIES[number % 5], "associated_culture": cultures[number % 3],
            "human_rating": 1 + number % 10,
        }
        for number in range(count)
    ]  # fmt: skip


def number_of(prompt):
    return int(re.search(r"Question <(\d+)>", prompt)[1])


def rating_of(number):
    return 1 + number % 10


# --- the endpoint ----------------------------------------------------------------------------------------------------


def unreliable(prompt, before, call):
    """5 % malformed ratings (a third of these always), 5 % time-outs, 429 with Retry-After, one burst of 500."""
    number = number_of(prompt)
    if 100 <= call < 116:
        return 500, {}, {"error": "burst"}, 0.0
    if number % 20 == 0 and (before == 0 or number % 60 == 0):
        return 200, {}, completion("I would rather not say"), 0.0
    if number % 20 == 1 and before == 0:
        return 200, {}, completion("late"), 10.0
    if number % 50 == 2 and before == 0:
        return 429, {"Retry-After": "0.1"}, {"error": "slow down"}, 0.0
    if number % 100 == 3 and before == 0:
        return 200, {}, "<html>not JSON</html>", 0.0
    return 200, {}, completion(f"Fine.\nRating: [[{rating_of(number)}]]"), 0.002


FLAGS = ["--timeout", "4", "--json"]  # long enough that only the late answers are late, also on a busy machine


def test_with_an_unreliable_endpoint_every_row_is_judged_or_counted(tmp_path, capsys):
    source, out = write(tmp_path / "answers.jsonl", rows(450)), tmp_path / "rated.jsonl"
    with Server(unreliable) as server:
        words = ["judge", "--responses", source, "--out", str(out), "--judge-model", "j", "--base-url", server.url]
        assert cli.main([*words, *FLAGS]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["rows"], summary["judged"], summary["failed"], summary["empty"]) == (450, 442, 8, 0)
        assert summary["problems"] == {"no rating in the judgement": 8}
        assert summary["counts"]["time out"] == 23
        assert summary["counts"]["HTTP 429"] == 9
        assert summary["counts"]["not JSON"] == 5
        assert summary["counts"]["HTTP 500"] == 16
        assert summary["agreement_with_people"]["pearson"] == pytest.approx(1.0)
        assert summary["agreement_with_people"]["kappa"] == 1.0
        for number, line in enumerate(lines(out)):
            failed = number % 60 == 0
            assert line["rating"] == (None if failed else rating_of(number))
            assert ("judge_failed" in line) is failed
            assert line["rubric"] == rubrics.choose_rubric(rubrics.BUILT_IN, CATEGORIES[number % 5]).name
        # Again: everything is in the cache, also the failures with their three judgements.
        calls, before = sum(server.calls.values()), out.read_bytes()
        assert cli.main([*words, *FLAGS]) == 0
        assert sum(server.calls.values()) == calls
        assert out.read_bytes() == before
        capsys.readouterr()
        assert cli.main([*words, "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["calls"] == 0


def start(words):
    return subprocess.Popen([sys.executable, "-m", "care_jax", *words], stderr=subprocess.DEVNULL)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_call_is_made_twice_after_a_stop_and_a_kill(tmp_path):
    """SIGTERM waits for the running calls. A kill loses only those, at most as many as run at once."""

    def slow(prompt, before, call):
        return 200, {}, completion(f"Rating: [[{rating_of(number_of(prompt))}]]"), 0.03

    source, out = write(tmp_path / "answers.jsonl", rows(450)), tmp_path / "rated.jsonl"
    with Server(slow) as server:
        words = ["judge", "--responses", source, "--out", str(out), "--judge-model", "j", "--base-url", server.url]
        process = start(words)
        wait_for(lambda: len(server.bodies) > 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
        stopped = set(server.calls)
        assert len(stopped) < 450
        assert set(server.calls.values()) == {1}
        cached = len(lines(tmp_path / "rated.jsonl.cache.jsonl"))
        assert cached == len(stopped)

        process = start(words)
        wait_for(lambda: len(server.bodies) > len(stopped) + 60)
        process.kill()
        process.wait(60)
        wait_for(lambda: server.at_once == 0)
        kept = {
            json.loads(line)["key"] for line in (tmp_path / "rated.jsonl.cache.jsonl").read_text().splitlines()[:-1]
        }
        before = server.calls.copy()
        assert cli.main(words) == 0
        again = {prompt for prompt, count in server.calls.items() if count > 1}
        assert not again & stopped
        assert len(again) <= 16
        assert 8 < server.most_at_once <= 16  # a slow machine may not start all at once
        asked_twice = {content_key(body) for body in server.bodies if body["messages"][0]["content"] in again}
        assert not asked_twice & kept
        assert set(before) <= set(server.calls)
        assert len(server.calls) == 450
        assert [line["rating"] for line in lines(out)] == [rating_of(number) for number in range(450)]


def test_a_wrong_key_ends_the_command_at_once(tmp_path, capsys):
    def refuse(prompt, before, call):
        return 401, {}, {"error": "no such key"}, 0.0

    source = write(tmp_path / "a.jsonl", rows(30))
    with Server(refuse) as server:
        words = ["judge", "--responses", source, "--out", str(tmp_path / "o"), "--judge-model", "j"]
        assert cli.main([*words, "--base-url", server.url]) == 2
        assert len(server.bodies) <= 16
    err = capsys.readouterr().err
    assert "answers 401 (the key comes from the environment: OPENAI_API_KEY)" in err
    assert "Traceback" not in err


def test_a_request_that_always_fails_is_counted(tmp_path, capsys):
    def broken(prompt, before, call):
        return (400, {}, {"error": "too long"}, 0.0) if number_of(prompt) == 1 else (503, {}, "", 0.0)

    source, out = write(tmp_path / "a.jsonl", [*rows(2), {**rows(3)[2], "response": " "}]), tmp_path / "o.jsonl"
    with Server(broken) as server:
        words = ["judge", "--responses", source, "--out", str(out), "--judge-model", "j", "--base-url", server.url]
        assert cli.main([*words, "--retries", "1", "--json"]) == 0
        assert sorted(server.calls.values()) == [1, 2]  # 400 is not asked again, 503 once
    summary = json.loads(capsys.readouterr().out)
    assert (summary["judged"], summary["failed"], summary["empty"], summary["mean"]) == (0, 2, 1, None)
    assert [line["judge_failed"].split(":")[0] for line in lines(out)] == ["HTTP 503", "HTTP 400", "no response"]


# --- files -----------------------------------------------------------------------------------------------------------


def batch(line, text, status=200):
    return {
        "custom_id": line["custom_id"],
        "response": {"status_code": status, "body": completion(text)},
        "error": None,
    }


def test_requests_out_answers_in_and_a_second_round(tmp_path, capsys):
    source, requests, out = write(tmp_path / "a.jsonl", rows(7)), tmp_path / "requests.jsonl", tmp_path / "o.jsonl"
    assert cli.main(["judge", "--responses", source, "--requests-out", str(requests), "--judge-model", "gpt-x"]) == 0
    requested = lines(requests)
    assert len(requested) == len({line["custom_id"] for line in requested}) == 7
    assert {line["url"] for line in requested} == {"/v1/chat/completions"}
    assert requested[0]["body"]["model"] == "gpt-x"
    assert requested[0]["body"]["temperature"] == 0.0
    assert "answer 0" in requested[0]["body"]["messages"][0]["content"]
    first = [batch(line, f"Rating: [[{n + 1}]]") for n, line in enumerate(requested[:5])] + [batch(requested[5], "hm")]
    first[4] = {"custom_id": requested[4]["custom_id"], "response": None, "error": {"code": "expired"}}
    answers = write(tmp_path / "first.jsonl", [*first, {"custom_id": "stranger", "response": None}])
    again = tmp_path / "again.jsonl"
    words = ["judge", "--responses", source, "--out", str(out), "--judge-model", "gpt-x", "--json", "--answers-in"]
    assert cli.main([*words, answers, "--requests-out", str(again)]) == 0
    streams = capsys.readouterr()
    assert "1 answers belong to no row" in streams.err
    assert json.loads(streams.out)["judged"] == 4
    left = lines(again)
    assert [line["custom_id"] for line in left] == [line["custom_id"] for line in requested[4:]]
    second = write(tmp_path / "second.jsonl", [batch(line, "Rating: [[9]]") for line in left])
    assert cli.main([*words, answers, second]) == 0
    assert json.loads(capsys.readouterr().out)["judged"] == 7
    assert [line["rating"] for line in lines(out)] == [1, 2, 3, 4, 9, 9, 9]
    # A second judge is compared over the rows that both rated.
    other = write(
        tmp_path / "other.jsonl", [{**line, "rating": line["rating"] + n % 2} for n, line in enumerate(lines(out))]
    )
    assert cli.main([*words, answers, second, "--second", other]) == 0
    agreement = json.loads(capsys.readouterr().out)["agreement_with_second"]
    assert agreement["n"] == 7
    assert agreement["mean_difference"] == pytest.approx(-3 / 7)


def test_a_changed_answer_has_another_custom_id(tmp_path):
    loaded, settings = rubrics.load_rubrics(None, "by_content"), judge.JudgeSettings("j")
    jobs = judge.read_jobs(write(tmp_path / "a.jsonl", rows(2)), loaded, settings)
    changed = [{**row, "response": row["response"] + "!"} for row in rows(2)]
    other = judge.read_jobs(write(tmp_path / "b.jsonl", changed), loaded, settings)
    assert not {job.custom_id for job in jobs} & {job.custom_id for job in other}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a judge"),
        (["--judge-model", "gpt-4o"], "no folder 'gpt-4o' here"),
        (["--judge-model", "j", "--base-url", "localhost"], "expected something like http://localhost:8000/v1"),
        (["--judge-model", "j", "--base-url", "http://127.0.0.1:9", "--tries", "0"], "--tries: found 0"),
        (["--requests-out", "answers.jsonl"], "is the responses"),
    ],
)
def test_mistakes(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "answers.jsonl", rows(1))
    assert cli.main(["judge", "--responses", "answers.jsonl", "--out", "o.jsonl", *words]) == 2
    assert message in capsys.readouterr().err


def test_judging_and_reporting_load_no_jax(tmp_path):
    source = write(tmp_path / "a.jsonl", rows(6))
    code = f"""
import sys
from care_jax import cli
from tests.evaluation.servers import Server, completion
with Server(lambda prompt, before, call: (200, {{}}, completion("Rating: [[5]]"), 0.0)) as server:
    words = ["judge", "--responses", {source!r}, "--out", "rated/o.jsonl"]
    assert cli.main([*words, "--judge-model", "j", "--base-url", server.url]) == 0
    assert cli.main(["generate", "--base-url", server.url, "--data", {source!r}, "--out", "generated.jsonl"]) == 0
assert cli.main(["report", "rated", "--out", "report"]) == 0
assert cli.main(["evaluate", "--task", "care_eval", "--responses", "rated/o.jsonl", "--data", {source!r}]) == 0
assert "jax" not in sys.modules and "torch" not in sys.modules
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5.000" in done.stdout
