"""The files of docs/new_loss.md work as they are, and are together shorter than thirty lines."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from tests.test_end_to_end import command, environment

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "new_loss.md"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the files of the page, named by the titles of its code blocks, and their lines."""
    folder = tmp_path_factory.mktemp("new_loss")
    blocks = dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert list(blocks) == ["my_loss.py", "check_my_loss.py", "run.sh"]
    for name, text in blocks.items():
        (folder / name).write_text(text)
    return folder, [line for text in blocks.values() for line in text.splitlines() if line.strip()]


def output_of(arguments, folder):
    done = subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_short(written):
    assert len(written[1]) < 30


def test_its_check_passes(written):
    assert "offset_dpo" in output_of([sys.executable, "check_my_loss.py"], written[0])


def test_its_commands_train_and_draw(written):
    folder = written[0]
    for line in (folder / "run.sh").read_text().splitlines():
        program, *arguments = line.split()
        assert program == "care-jax"
        if arguments[0] == "train":  # as on the page, only shorter
            arguments += [
                "data.max_steps=2",
                "data.eval=[]",
                "data.train.0.cultures=[chinese]",
                "checkpoint.every=null",
            ]
        output_of(command(*arguments), folder)
    run = folder / "runs" / "quickstart"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    # Its logged quantity is scale times a gap of at least two (from the recipe); all pairs are still ties.
    assert lines[0]["offset"] >= 0.2 * 2
    assert lines[0]["loss"] > 0.69
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert "my_loss:offset_dpo" in (run / "config.yaml").read_text()
    assert (folder / "offset_dpo.png").stat().st_size > 0
