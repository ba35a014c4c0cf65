"""The command line: exit statuses, streams, and one clear message for a mistake.

Also tests `cli/command.py`, `cli/train.py`, `cli/losses.py`.
"""

import pytest
import yaml

from care_jax import cli
from care_jax.stopping import Interrupted
from care_jax.training import loop

TINY = """\
model: {path: sample, init: random, dtype: float32}
data: {train: [{reader: care, path: sample}]}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def trained(monkeypatch):
    """The configurations that reach the trainer, which is replaced and trains nothing."""
    seen = []
    monkeypatch.setattr(loop, "train", seen.append)
    return seen


def test_train_hands_over_the_resolved_configuration(recipe, trained):
    assert cli.main(["train", recipe, "cpu", "loss.name=simpo", "loss.beta=1e-1", "seed=3"]) == 0
    (config,) = trained
    assert (config.loss.name, config.loss.hyperparameters["beta"], config.seed) == ("simpo", 0.1, 3)
    assert config.model.remat == "none"  # of the machine


@pytest.mark.parametrize("place", range(4))
def test_options_may_be_anywhere(recipe, trained, capsys, place):
    words = ["cpu", "loss.beta=0.2", "seed=1"]
    assert cli.main(["train", recipe, *words[:place], "--dry-run", *words[place:]]) == 0
    assert trained == []
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["loss"]["beta"], shown["seed"], shown["model"]["remat"]) == (0.2, 1, "none")


def test_a_dry_run_prints_a_recipe_that_can_be_run(recipe, tmp_path, capsys):
    assert cli.main(["train", recipe, "--dry-run", "data.eval=[]", "optimizer.learning_rate=1e-6"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(first)
    assert cli.main(["train", str(tmp_path / "again.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["no_such.yaml"], ["no_such.yaml", "no such file", "quickstart"]),
        (["quickstrat"], ["'quickstrat'", "did you mean 'quickstart'"]),
        (["quickstart", "gpu"], ["machine 'gpu'", "gpu-24gb"]),
        (["cpu"], ["is a machine", "RECIPE cpu"]),
        (["quickstart", "loss.bta=1"], ["loss.bta", "did you mean 'beta'"]),
        (["quickstart", "loss.name=dop"], ["loss.name", "'dop'", "did you mean 'dpo'"]),
        (["quickstart", "data.train.0.reader=car"], ["data.train.0.reader", "'car'", "did you mean 'care'"]),
        (["quickstart", "optimiser.learning_rate=1"], ["optimiser", "did you mean 'optimizer'"]),
        (["quickstart", "optimizer.learning_rate=fast"], ["optimizer.learning_rate", "'fast'", "a number"]),
        (["quickstart", "data.max_length=100000"], ["data.max_length", "100000", "batch.row_length"]),
        (["quickstart", "=3"], ["'=3'", "key=value"]),
        (["quickstart", "seed=["], ["seed", "not valid YAML"]),
    ],
)
def test_a_mistake_is_one_message_and_status_2(words, parts, capsys, trained):
    assert cli.main(["train", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert trained == []
    assert "Traceback" not in err
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "COMMAND"),
        (["trian"], "trian"),
        (["train"], "RECIPE"),
        (["train", "quickstart", "--dryrun"], "did you mean '--dry-run'"),
        (["data"], "inspect"),
        (["data", "inspect"], "D"),
        (["data", "inspect", "sample", "more"], "more"),
        (["data", "inspect", "no_such.jsonl"], "no_such.jsonl"),
        (["data", "inspect", "sample", "--reader", "car"], "did you mean 'care'"),
    ],
)
def test_misuse_is_status_2(words, part, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "status", "part"),
    [
        (Interrupted("stopped at step 3 of 9; saved"), 75, "stopped at step 3"),
        (loop.Diverged("step 4: 3 updates in a row were not finite"), 1, "not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_status_of_a_run_that_fails(recipe, monkeypatch, capsys, error, status, part):
    def train(config):
        raise error

    monkeypatch.setattr(loop, "train", train)
    assert cli.main(["train", recipe]) == status
    assert part in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(recipe, monkeypatch):
    def train(config):
        raise ValueError("a bug")

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["train", recipe])


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "train" in shown
    assert "data" in shown
    assert cli.main(["train", "--help"]) == 0
    assert "loss.beta=0.2" in capsys.readouterr().out


def test_losses_listed_and_drawn(tmp_path, capsys):
    assert cli.main(["losses"]) == 0
    every = capsys.readouterr().out
    assert cli.main(["losses", "simpo"]) == 0
    simpo = capsys.readouterr().out
    assert "\nkto: " in every
    assert simpo.startswith("simpo: ")
    assert "gamma_beta_ratio=" in simpo
    pytest.importorskip("matplotlib")
    picture = tmp_path / "dpo.png"
    assert cli.main(["losses", "dpo", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["dop"], "did you mean 'dpo'"),
        (["--plot", "a.png"], "losses NAME --plot FILE"),
        (["dpo", "--plot", "a.txt"], "'a.txt'"),
    ],
)
def test_mistakes_about_losses(words, part, capsys):
    assert cli.main(["losses", *words]) == 2
    assert part in capsys.readouterr().err
