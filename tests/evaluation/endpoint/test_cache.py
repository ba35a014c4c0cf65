"""The cache of replies."""

import json

import pytest

from care_jax.errors import UserError
from care_jax.evaluation.endpoint.cache import ReplyCache, content_key


def test_an_incomplete_last_line_is_cut_off(tmp_path):
    path = tmp_path / "cache.jsonl"
    cache = ReplyCache(path)
    cache.put("a", {"text": "1"})
    cache.close()
    with open(path, "a") as file:
        file.write('{"key": "b", "te')
    cache = ReplyCache(path)
    assert cache.get("a")["text"] == "1"
    assert cache.get("b") is None
    cache.put("c", {"text": "3"})
    cache.close()
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"response": "tea"}\n')
    with pytest.raises(UserError, match="not a cache of replies"):
        ReplyCache(path)
    with pytest.raises(UserError, match="cannot write"):
        ReplyCache(path / "below.jsonl")
    assert path.read_text() == '{"response": "tea"}\n'


def test_the_key_depends_on_the_body_and_the_attempt():
    bodies = [{"model": "m", "prompt": "a"}, {"prompt": "a", "model": "m"}, {"model": "n", "prompt": "a"}]
    keys = [content_key(body, attempt) for body in bodies for attempt in (0, 1)]
    assert keys[:2] == keys[2:4]
    assert len(set(keys)) == 4
