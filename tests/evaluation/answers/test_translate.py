"""Translation of questions by `generate --task translate`, and its use as the `translations:` of a source."""

import json

import pytest

from care_jax import cli
from care_jax.data import readers
from care_jax.errors import UserError
from tests.data.care_rows import care_row, write
from tests.evaluation.servers import Server, completion


def test_a_source_uses_the_translations_of_an_endpoint(tmp_path, capsys):
    translated = "translated_question (optional)"
    rows = [
        care_row(question="一", response="a"),
        care_row(question="一 ", response="b"),
        care_row(question="二", associated_culture="Native (Japanese)"),
        care_row(question="三", **{translated: "three"}),
        care_row(question="四"),
        care_row(question=""),
    ]
    path, out = write(tmp_path, rows), tmp_path / "made.jsonl"

    def answer(prompt, before, call):
        reply = completion(f" what is\u2028{prompt[-1]}? \n")
        if prompt.endswith("四"):
            reply["choices"][0]["finish_reason"] = "length"
        return 200, {}, reply, 0.0

    with Server(answer) as server:
        words = ["generate", "--task", "translate", "--base-url", server.url, "--data", path, "--out", str(out)]
        assert cli.main(words) == 0
        assert len(server.bodies) == 3  # each question once, none that has a translation
        assert {body["temperature"] for body in server.bodies} == {0.0}
    assert "2 translations; 1 left out" in capsys.readouterr().err
    translations = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert translations[0] == {
        "question": "一", "culture": "Native (Chinese)", "translated_question": "what is\u2028一?", "system": "only-one"
    }  # fmt: skip
    with pytest.raises(UserError, match="1 of 4 questions"):
        readers.read("care", path, query_language="english", translations=str(out))
    kept = readers.read("care", path, query_language="english", translations=str(out), cultures=["japanese"]).questions
    assert kept[0].prompt[0]["content"] == "what is\u2028二?"

    done = write(tmp_path, [rows[3]], "done.jsonl")
    assert cli.main([*words[:5], "--data", done, "--out", str(out)]) == 2
    assert "nothing to translate" in capsys.readouterr().err
