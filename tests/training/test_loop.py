"""Short runs on the packaged sample, one for each kind of loss: finite numbers, known ones in the first step.

Also tests `training/recording.py`, `training/evaluation/schedule.py`, `training/evaluation/tasks.py`.
"""

import gc
import json
import math

import jax
import pytest

import care_jax
from care_jax import cli, hardware
from care_jax.data import pipeline
from care_jax.errors import UserError
from care_jax.models.arch import num_params
from care_jax.training import loop
from care_jax.training.errors import RunFailed
from care_jax.training.run import metrics

pytestmark = pytest.mark.usefixtures("one_device")


SMALL = {
    "data.train": [{"reader": "care", "path": "sample", "cultures": ["chinese"]}],
    "data.eval": [],
    "data.max_steps": 2,
    "data.max_length": 128,
    "batch.unit": "pair",
    "batch.row_length": 128,
    "batch.microbatch_rows": 2,
    "checkpoint.every": None,
    "trackers": [],
}


def run(folder, **changes):
    """Two small steps of the quickstart recipe on the sample's Chinese questions; returns the metrics of the steps."""
    made = care_jax.train("quickstart", **{"output_dir": str(folder / "run"), **SMALL, **changes})
    steps = [line for line in made.metrics if "loss" in line]
    assert (steps == made.metrics) == ("evaluation" not in changes)
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        for name in ("loss", "grad_norm"):
            assert math.isfinite(line[name])
        assert line["grad_norm"] > 0
    return steps


def test_lines_hold_time_and_memory_and_the_first_one_the_compile_time(tmp_path, monkeypatch):
    """On a device whose peak is known. With log_every 2 the first line is that of step 2."""
    chip = hardware.Chip("this CPU", 2**34, 1e12, "made up")
    monkeypatch.setitem(hardware.CHIPS, jax.devices()[0].device_kind, chip)
    monkeypatch.setattr(metrics, "memory_peak", lambda: 12345)
    made = care_jax.train("quickstart", **{**SMALL, "output_dir": str(tmp_path), "log_every": 2, "data.max_steps": 4})
    first, second = (line for line in made.metrics if "loss" in line)
    assert (first["step"], second["step"]) == (2, 4)
    assert first["compile_seconds"] > 0
    assert "compile_seconds" not in second
    for line in (first, second):
        assert line["device_memory_peak_bytes"] == 12345
        assert line["step_seconds"] > 0
        assert line["input_wait_seconds"] >= 0
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["step_seconds"])
        flops = line["mfu"] * line["step_seconds"] * chip.flops * jax.device_count()
        # 6 N per token in matrix products, with N parameters without the embedding; and attention.
        weights = num_params(made.model.arch) - made.model.arch.vocab_size * made.model.arch.hidden
        assert 1 <= flops / (6 * weights * line["tokens"]) < 1.5


@pytest.mark.parametrize(("mode", "copies"), [("precompute", 3), ("online", 4)])
def test_a_precomputed_reference_keeps_no_weights(tmp_path, monkeypatch, mode, copies):
    """Weights and two moments; a fourth copy only if the reference runs at every step."""
    seen = []
    compile_step = loop.compile_step

    def counted(jitted, state, batch):
        shape = max((leaf.shape for leaf in jax.tree.leaves(state.params)), key=math.prod)
        seen.append(sum(x.shape == shape and id(x) not in others for x in jax.live_arrays()))
        return compile_step(jitted, state, batch)

    gc.collect()
    kept = jax.live_arrays()  # of other tests
    others = {id(x) for x in kept}
    monkeypatch.setattr(loop, "compile_step", counted)
    run(tmp_path, **{"reference.mode": mode})
    assert seen == [copies]


def test_kto(tmp_path):
    first, second = run(tmp_path, loss={"name": "kto", "desirable_weight": 1.5})
    share = json.loads((tmp_path / "run" / "data_report.json").read_text())["labels"]
    assert share["desirable"] > 0
    assert share["undesirable"] > 0
    # The policy is its reference: every response loses half its weight, 0.5 or 0.75.
    desirable = (first["loss"] - 0.5) / 0.25 * 8
    assert desirable == pytest.approx(round(desirable), abs=1e-3)
    assert first["kl/unclamped"] == pytest.approx(0, abs=1e-3)
    assert second["kl"] == max(second["kl/unclamped"], 0)


@pytest.mark.slow  # test_trl.py trains with it too
def test_simpo(tmp_path):
    first, _ = run(tmp_path, loss={"name": "simpo"})
    assert first["rewards/chosen"] == pytest.approx(2 * -math.log(2048), rel=0.05), "the weights are random"
    # Nearly a tie everywhere: log(1 + exp(gamma)), gamma = 2 x 0.25.
    assert first["loss"] == pytest.approx(math.log1p(math.exp(0.5)), abs=0.1)


def test_a_list_loss(tmp_path):
    first, _ = run(tmp_path, loss={"name": "plackett_luce"}, **{"batch.examples": 3, "batch.row_length": 256})
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert first["rewards/accuracies"] is not None


def test_a_whole_step_loss(tmp_path):
    first, _ = run(tmp_path, loss={"name": "aot"})
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_a_whole_step_loss_refuses_groups_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=r"batch\.unit: found group, expected pair: loss aot "):
        run(tmp_path, loss={"name": "aot"}, **{"batch.unit": "group", "data.train": [{"path": "nowhere.jsonl"}]})
    assert not (tmp_path / "run").exists()


def test_a_data_thread_that_fails_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    def die(*_, **__):
        raise MemoryError("no memory left for the batch")

    monkeypatch.setattr(pipeline, "fill", die)
    reason = r"batch of step 1 could not be made: MemoryError: no memory left for the batch; no checkpoint was saved"
    with pytest.raises(RunFailed, match=reason):
        run(tmp_path, loss={"name": "simpo"})


def test_nll_on_the_best_responses(tmp_path):
    first, _ = run(tmp_path, loss={"name": "nll"}, **{"data.labels": "best"})
    assert first["loss"] == pytest.approx(math.log(2048), rel=0.05), "the weights are random"
    assert first["logps/rejected"] is None
    labels = json.loads((tmp_path / "run" / "data_report.json").read_text())["labels"]
    assert labels["undesirable"] == 0


def test_an_online_reference_and_a_mixture(tmp_path):
    """dpo + sft give the same numbers with a precomputed reference and with one computed at every step."""
    mixture = [{"name": "dpo"}, {"name": "sft", "weight": 0.5}]
    before = run(tmp_path / "before", loss=mixture)
    online = run(tmp_path / "online", loss=mixture, **{"reference.mode": "online"})
    assert before[0]["loss"] == pytest.approx(math.log(2) + 0.5 * math.log(2048), rel=0.05)
    for one, other in zip(online, before):
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            # beta times a difference of two sums of hundreds of nats, which one of the runs lays out in other rows.
            assert one[name] == pytest.approx(other[name], abs=1e-4), name


def test_tasks_are_evaluated_every_so_often_as_the_command_does(tmp_path, capsys):
    """By letter after an example, with a column map, and in words; the last numbers are those of the export."""
    rows = [
        {"ask": f"Number {n}?", "choices": ["one", "two", "three"], "answer": n % 3, "topic": "x"} for n in range(6)
    ]
    data, examples = tmp_path / "exam.jsonl", tmp_path / "dev.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples.write_text(json.dumps({**rows[0], "ask": "An example?"}) + "\n")
    exam = {"task": "mcq", "data": str(data), "columns": {"question": "ask"}}
    shot = {**exam, "name": "shot", "num_fewshot": 1, "fewshot": str(examples)}
    words = {**exam, "name": "words", "method": "generate", "max_tokens": 4, "limit": 3}
    run(tmp_path, evaluation={"tasks": [shot, words], "every": 2})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "eval/shot/score" in line]
    assert [line["step"] for line in found] == [0, 2]
    model = ["--model", str(tmp_path / "run" / "export"), "--data", str(data), "--columns", "question=ask", "--json"]
    for name, more in (
        ("shot", ["--num-fewshot", "1", "--fewshot", str(examples)]),
        ("words", ["--method", "generate", "--max-tokens", "4", "--limit", "3", "--temperature", "0"]),
    ):
        capsys.readouterr()
        assert cli.main(["evaluate", "--task", "mcq", "--out", str(tmp_path / name), *model, *more]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert {key: found[-1][f"eval/{name}/{key}"] for key in ("score", "missing", "failed")} == {
            key: result[key] for key in ("score", "missing", "failed")
        }
    with pytest.raises(UserError, match=r"evaluation\.tasks.*num_fewshot: goes with fewshot"):
        run(tmp_path / "b", evaluation={"tasks": [{**exam, "num_fewshot": 1}]})
