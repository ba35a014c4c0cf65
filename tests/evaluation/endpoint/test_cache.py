"""The cache of replies."""

import json

from care_jax.evaluation.endpoint.cache import ReplyCache


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
