"""Answers of an endpoint: what is sent, and what the file holds."""

import json

from care_jax.evaluation.answers.ask import ask_file
from care_jax.evaluation.answers.prompts import GenerationSettings, PromptRow
from care_jax.evaluation.endpoint.client import Endpoint
from tests.evaluation.servers import Server, completion

PROMPTS = [
    PromptRow(number, {"id": number}, ({"role": "user", "content": f"Question {number}?"},)) for number in (0, 1)
]


def answer(prompt, before, call):
    if "1" in prompt:
        return 400, {}, {"error": "too long"}, 0.0
    return 200, {}, completion("Tea."), 0.0


def ask(tmp_path, **settings):
    out = tmp_path / "answers.jsonl"
    with Server(answer) as server:
        counts = ask_file(Endpoint(server.url, "m"), PROMPTS, out, GenerationSettings(**settings))
    return server, counts, [json.loads(line) for line in out.read_text().splitlines()]


def test_samples_have_their_own_seed_and_a_failed_call_is_a_line(tmp_path):
    server, counts, lines = ask(tmp_path, n=2, temperature=0.5)
    assert [line["id"] for line in lines] == [0, 0, 1, 1]
    assert lines[0] == {"id": 0, "response": "Tea.", "finish_reason": "stop", "system": "m"}
    assert lines[2]["response"] is None
    assert lines[2]["problem"].startswith("HTTP 400")
    assert counts["failed"] == 2
    assert len({body["seed"] for body in server.bodies}) == 4
    assert set(server.paths) == {"/v1/chat/completions"}


def test_greedy_answers_have_no_seed_and_without_a_template_the_prompt_is_text(tmp_path):
    server, _, _ = ask(tmp_path, temperature=0.0, chat_template="none")
    assert all("seed" not in body for body in server.bodies)
    assert {body["prompt"] for body in server.bodies} == {"Question 0?", "Question 1?"}
    assert set(server.paths) == {"/v1/completions"}
