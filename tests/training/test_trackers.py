"""metrics.jsonl: whole lines, cut to the step that a run resumes from."""

import json
import math

from care_jax.training.trackers import MetricsFile, plain


def test_resume_keeps_lines_up_to_the_step_and_drops_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, None)
    for step in range(4):
        file.log(step, {"loss": 0.5})
    file.close()
    with path.open("a") as torn:
        torn.write('{"step": 4, "lo')

    resumed = MetricsFile(path, 2)
    assert [line["step"] for line in resumed.lines] == [0, 1, 2]
    resumed.log(3, {"loss": 0.25})
    resumed.sync()
    resumed.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n')
    MetricsFile(path, None).close()
    assert path.read_text() == ""


def test_a_mean_over_nothing_is_null():
    assert plain(math.nan) is None
    assert plain(math.inf) is None
    assert plain(0.5) == 0.5
