"""`care-jax judge` with a model on this machine; endpoints and files are tested by `tests/evaluation/test_judge.py`."""

import json

from care_jax import cli


def test_a_model_on_this_machine_is_a_judge(tmp_path, capsys):
    responses, out = tmp_path / "answers.jsonl", tmp_path / "rated.jsonl"
    rows = [{"question": "Tea?", "response": "Green."}, {"question": "Rice?", "response": ""}]
    responses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["judge", "--responses", str(responses), "--out", str(out), "--judge-model", "sample", "--json"]
    words += ["--max-tokens", "4", "--tries", "2"]
    assert cli.main(words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["judged"] + summary["failed"], summary["empty"]) == (2, 1, 1)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["judge"] for line in lines] == ["sample", "sample"]
    assert lines[1]["judge_failed"] == "no response"
    replies = (tmp_path / "rated.jsonl.cache.jsonl").read_bytes()
    assert cli.main(words) == 0  # from the cache
    assert (tmp_path / "rated.jsonl.cache.jsonl").read_bytes() == replies
    assert [json.loads(line) for line in out.read_text().splitlines()] == lines
