"""The configuration: what is laid over what, what is refused and how, and that it survives a round trip."""

import contextlib
import pathlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax import config, losses
from care_jax.config import Config, files, steps_of
from care_jax.errors import UserError

MINIMAL = {"model": {"path": "sample"}, "data": {"train": [{"path": "sample"}]}}
RECIPES, MACHINES = files.shipped("recipe"), files.shipped("machine")


def make(**overrides) -> Config:
    return Config.from_any(MINIMAL, **overrides)


def refused(**overrides) -> str:
    with pytest.raises(UserError) as caught:
        make(**overrides)
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and gives its path."""

    def write(text: str, name: str = "mine.yaml") -> pathlib.Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# ---- Defaults and layers


def test_defaults():
    one = make()
    assert one.output_dir == "runs/run"
    assert one.loss.name == "dpo"
    assert one.losses == (one.loss,)
    assert one.data.eval.fraction == 0.05
    assert one.data.pairs.policy == "best_worst"
    assert one.optimizer.learning_rate == 5e-7
    assert one.batch.examples == 128
    assert one.trackers == ("tensorboard",)
    assert one.model.lora is None
    assert one.profile is None
    assert one.checkpoint.every == 0.25


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        make().batch.examples = 3


def test_later_wins(recipe):
    base = recipe(yaml.safe_dump(MINIMAL | {"seed": 1, "batch": {"examples": 4, "microbatch_rows": 2}}))
    first = recipe("batch: {microbatch_rows: 16}\nseed: 2", "first.yaml")
    second = recipe("seed: 3", "second.yaml")
    one = config.load(base, first, second)
    assert (one.seed, one.batch.examples, one.batch.microbatch_rows) == (3, 4, 16)
    assert config.load(base, second, first).seed == 2
    assert config.load(base, first, overrides=["seed=7", "seed=8"]).seed == 8


def test_a_run_is_named_after_its_recipe(recipe):
    one = config.load(recipe(yaml.safe_dump(MINIMAL), "chinese.yaml"))
    assert (one.name, one.output_dir) == ("chinese", "runs/chinese")
    assert config.load(recipe(yaml.safe_dump(MINIMAL)), overrides=["name=other"]).output_dir == "runs/other"


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shipped_loads_with_every_machine(name):
    for machine in MACHINES:
        one = config.load(name, machine)
        assert one.name == name
        path = files.find(name, "recipe")
        assert path.read_text().startswith(f"# care-jax train {name}")
        assert one.losses[0].name == (name.split("-")[0] if "-" in name else "dpo")


def test_shipped_names():
    assert RECIPES[0] != ""
    assert "quickstart" in RECIPES
    assert len(RECIPES) >= 13
    assert {"cpu", "v5e-64", "v5p-16", "v5p-256", "h200", "gpu-80gb", "gpu-24gb"} <= set(MACHINES)
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        config.load("quickstrt")


def test_machines_say_only_where_a_run_happens():
    allowed = {"model": {"dtype", "param_dtype", "remat", "attention"}, "batch": {"microbatch_rows"}}
    allowed |= {"mesh": {"data", "fsdp", "tensor"}, "optimizer": {"moment_dtype", "accumulate_dtype"}}
    for machine in MACHINES:
        for block, keys in files.read(machine, "machine").items():
            assert set(keys) <= allowed[block], machine


# ---- Overrides


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "0.000001", "'1e-6'", "1.0e-6"])
def test_numbers_as_people_write_them(recipe, text):
    path = recipe(yaml.safe_dump(MINIMAL) + f"optimizer: {{learning_rate: {text}}}\nloss: {{beta: {text}}}\n")
    one = config.load(path, overrides=[f"optimizer.eps={text}"])
    assert one.optimizer.learning_rate == one.loss.hyperparameters["beta"] == one.optimizer.eps == 1e-6


def test_overrides_reach_into_lists_and_absent_blocks():
    one = make(**{"data.train.0.limit.questions": 3, "model.lora.r": 8, "data.train.0.cultures": ["arab"]})
    assert one.data.train[0].limit.questions == 3
    assert one.data.train[0].cultures == ("arab",)
    assert one.model.lora.r == 8
    assert one.model.lora.target_modules == "all"


def test_alternatives_replace_each_other():
    held_out = Config.from_any(make(), **{"data.eval.questions": 64})
    assert (held_out.data.eval.fraction, held_out.data.eval.questions) == (None, 64)
    assert make(**{"data.eval": []}).data.eval == ()
    assert make(**{"data.eval": [{"path": "x"}]}).data.eval[0].reader == "care"
    assert Config.from_any(make(**{"data.eval": []}), **{"data.eval.fraction": 0.5}).data.eval.fraction == 0.5
    limited = make(**{"data.train.0.limit": {"questions": 3}})
    assert Config.from_any(limited, **{"data.train.0.limit": {"pairs": 5}}).data.train[0].limit.pairs == 5


def test_the_name_of_a_loss_resets_its_other_keys(recipe):
    base = recipe(yaml.safe_dump(MINIMAL | {"loss": {"name": "dpo", "beta": 0.7, "label_smoothing": 0.1}}))
    assert config.load(base).loss.hyperparameters == {"beta": 0.7, "label_smoothing": 0.1}
    defaults = {key: value for key, (_, value) in losses.spec(losses.simpo).hyperparameters.items()}
    assert config.load(base, overrides=["loss.name=simpo"]).loss.hyperparameters == defaults
    assert config.load(base, overrides=["loss.name=dpo"]).loss.hyperparameters["beta"] == 0.1
    assert config.load(base, recipe("loss: {name: ipo}", "m.yaml")).loss.hyperparameters == {"beta": 0.1}
    # What is given beside the name stays, wherever it stands.
    for order in (["loss.name=simpo", "loss.beta=9"], ["loss.beta=9", "loss.name=simpo"]):
        assert config.load(base, overrides=order).loss.hyperparameters == defaults | {"beta": 9.0}
    assert Config.from_any(config.load(base), **{"loss.name": "simpo"}).loss.hyperparameters == defaults


def test_a_list_of_losses():
    one = make(loss=[{"name": "dpo", "beta": 0.2}, {"name": "sft", "weight": 0.5}])
    assert [(each.name, each.weight) for each in one.losses] == [("dpo", 1.0), ("sft", 0.5)]
    assert Config.from_any(one, **{"loss.1.weight": 2}).losses[1].weight == 2
    assert Config.from_any(one, **{"loss.name": "kto"}).loss.name == "kto"


def test_a_loss_of_your_own(tmp_path, monkeypatch):
    text = (
        "def mine(chosen_logps, rejected_logps, *, slope=2.0, sides=3):\n    return rejected_logps - chosen_logps, {}\n"
    )
    (tmp_path / "loss_of_config_test.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    one = make(loss={"name": "loss_of_config_test:mine", "slope": "1e-1"})
    assert one.loss.hyperparameters == {"slope": 0.1, "sides": 3}
    assert "loss.slop:" in refused(loss={"name": "loss_of_config_test:mine", "slop": 1})


# ---- Round trips, and what changes a run's numbers


@pytest.mark.parametrize("name", ["quickstart", "kto-gemma2-9b"])
def test_round_trip(recipe, name):
    one = config.load(name, overrides=["model.lora={r: 4}", "data.train.0.limit.pairs=7"])
    assert config.load(recipe(config.dump(one))) == one
    assert Config.from_any(one) is not one
    assert Config.from_any(one) == one
    dated = config.with_template_date(one, "2026-01-31")
    assert config.load(recipe(config.dump(dated))).data.template_date == "2026-01-31"


def test_differences():
    one = make()
    same = make(name="other", **{"mesh.fsdp": 4, "batch.microbatch_rows": 2, "model.remat": "none", "log_every": 5})
    assert config.differences(one, same) == {}
    assert config.maths_hash(one) == config.maths_hash(same)
    other = make(**{"loss.beta": 0.2, "seed": 1, "data.train.0.weight": 2})
    expected = {"seed": (0, 1), "data.train.0.weight": (1.0, 2.0), "loss.beta": (0.1, 0.2)}
    assert config.differences(one, other) == expected
    assert config.maths_hash(one) != config.maths_hash(other)


def test_what_rounds_is_told_apart_from_what_changes_nothing():
    one = make()
    assert config.rounding_differences(one, make(name="other", log_every=5, **{"checkpoint.keep": 9})) == {}
    moved = make(**{"mesh.fsdp": 4, "batch.microbatch_rows": 2})
    found = config.rounding_differences(one, moved)
    assert set(found) == {"mesh", "batch.microbatch_rows"}
    assert found["batch.microbatch_rows"] == (8, 2)


def test_values_of_a_run_with_machines_and_keys_over_them():
    values = make(seed=3).model_dump(mode="json")
    one = config.over(values, ["cpu"], ["seed=4"])
    assert (one.seed, one.model.remat) == (4, "none")
    assert config.parse(config.dump(one)) == one


def test_summary_is_short():
    text = config.summary(make(loss=[{"name": "dpo"}, {"name": "sft", "weight": 0.5}]))
    assert "dpo(beta=0.1, label_smoothing=0.0) + 0.5 sft" in text
    assert text.count("\n") < 8


@pytest.mark.parametrize(
    ("interval", "total", "steps"),
    [(0.1, 30, 3), (0.1, 31, 4), (0.25, 10, 3), (1e-9, 5, 1), (0, 5, 0), (1, 5, 1), (7, 5, 7), (0.5, 1, 1)],
)
def test_steps_of(interval, total, steps):
    assert steps_of(interval, total) == steps


# ---- Mistakes


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("optimizer.learning_rat", 1, ["optimizer.learning_rat", "unknown key", "did you mean 'learning_rate'"]),
        ("learning_rate", 1, ["learning_rate", "did you mean 'optimizer.learning_rate'"]),
        ("data.train.0.culture", [], ["data.train.0.culture", "did you mean 'cultures'"]),
        ("data.train.0.limit", {"rows": 1}, ["data.train.0.limit.rows", "questions, pairs, tokens"]),
        ("data.train.0.limit", {"pairs": 1, "tokens": 2}, ["data.train.0.limit", "pairs and tokens", "exactly one"]),
        ("data.train", [], ["data.train", "[]", "list of sources"]),
        ("data.train", {"path": "x"}, ["data.train", "list of sources"]),
        ("data.train.0.path", "", ["data.train.0.path", "''", "text"]),
        ("data.train.path", "x", ["data.train is a list", "data.train.0"]),
        ("data.train.3.path", "x", ["data.train.3.path", "data.train.0 to data.train.0"]),
        ("data.train.0.weight", 0, ["data.train.0.weight", "above 0"]),
        ("data.train.0.cultures", "arab", ["data.train.0.cultures", "'arab'", "a list"]),
        ("data.train.0.relations", ["natve"], ["data.train.0.relations.0", "did you mean 'native'"]),
        ("data.eval", "none", ["data.eval", "'none'", "[] for none"]),
        ("data.eval", {"fraction": 1.5}, ["data.eval.fraction", "1.5", "below 1"]),
        ("data.eval", [{"reader": "care"}], ["data.eval.0.path", "nothing"]),
        ("data.eval", [{"path": "x", "limits": 3}], ["data.eval.0.limits", "did you mean 'limit'"]),
        ("data.labels", {"desirable_min": 3}, ["data.labels.undesirable_max", "less than desirable_min"]),
        ("data.epochs", None, ["data.epochs", "data.max_steps"]),
        ("data.epochs", 1.5, ["data.epochs", "1.5", "a whole number"]),
        ("data.fraction", 0, ["data.fraction", "above 0"]),
        ("data.max_length", 4096, ["data.max_length", "4096", "batch.row_length", "2048"]),
        ("data.shuffle", 1, ["data.shuffle", "1", "true or false"]),
        ("batch.examples", True, ["batch.examples", "True", "a whole number"]),
        ("batch.examples", 0, ["batch.examples", "0", "at least 1"]),
        ("batch.unit", "question", ["batch.unit", "'question'", "pair or group"]),
        ("model", "sample", ["model", "'sample'", "a mapping of path"]),
        ("model.dtype", "bf16", ["model.dtype", "'bf16'", "float32 or bfloat16"]),
        ("model.lora", True, ["model.lora", "True", "a mapping of r, alpha"]),
        ("model.lora.target_modules", "al", ["model.lora.target_modules", "did you mean 'all'"]),
        ("model.revision", 7, ["model.revision", "7", "in quotes"]),
        ("optimizer.learning_rate", "fast", ["optimizer.learning_rate", "'fast'", "a number"]),
        ("optimizer.learning_rate", float("nan"), ["optimizer.learning_rate", "nan", "a number"]),
        ("optimizer.learning_rate", 10**400, ["optimizer.learning_rate", "a number"]),
        ("optimizer.name", "adam", ["optimizer.name", "did you mean 'adamw'", "module:function"]),
        ("optimizer", {"name": "sgd", "b1": 0.5}, ["optimizer.b1", "0.5", "sgd does not use it", "0.9"]),
        ("optimizer.warmup", 1.5, ["optimizer.warmup", "1.5", "whole number of steps"]),
        ("checkpoint.every", 0, ["checkpoint.every", "above 0"]),
        ("mesh.data", -1, ["mesh.fsdp", "-1", "mesh.data"]),
        ("mesh.tensor", 0, ["mesh.tensor", "0", "positive"]),
        ("trackers", ["wandbb"], ["trackers.0", "did you mean 'wandb'"]),
        ("resume", "always", ["resume", "'always'", "auto or never or must"]),
        ("loss", "kto", ["loss", "'kto'", "{name: dpo"]),
        ("loss", [], ["loss", "[]", "list"]),
        ("loss.name", "dop", ["loss.name", "'dop'", "did you mean 'dpo'"]),
        ("loss.name", "no_such_module:f", ["loss.name", "no_such_module"]),
        ("loss.bta", 1, ["loss.bta", "did you mean 'beta'"]),
        ("loss.beta", "x", ["loss.beta", "'x'"]),
        ("loss.beta", "inf", ["loss.beta", "'inf'", "finite"]),
        ("loss", {"name": "simpo", "gamma": 1.4}, ["loss.gamma", "gamma_beta_ratio"]),
        ("loss", [{"name": "dpo"}, {"name": "sft", "bta": 1}], ["loss.1.bta", "'sft'"]),
        ("loss", [{"name": "dpo"}, {"name": "kto"}], ["loss", "dpo takes pairs", "kto takes unpaired"]),
        ("loss", {"name": "dpo", "weight": 0}, ["loss.weight", "0"]),
        ("seed", -1, ["seed", "-1", "at least 0"]),
        ("profile", {"start": 3}, ["profile.steps", "nothing"]),
    ],
)
def test_a_mistake_names_key_found_and_expected(key, value, parts):
    text = refused(**{key: value})
    for part in parts:
        assert part in text
    assert text.count("\n") == 0


def test_kto_needs_two_responses_a_step():
    assert "batch.examples: found 1" in refused(**{"loss.name": "kto", "batch.examples": 1})


def test_several_mistakes_are_lines_of_one_message():
    text = refused(seed=-1, **{"batch.examples": 0})
    assert "seed" in text
    assert "batch.examples" in text
    assert text.count("\n") == 1


def test_what_is_required_is_named():
    with pytest.raises(UserError, match=r"model: found nothing(.|\n)*data: found nothing"):
        Config.from_any({})
    with pytest.raises(UserError, match="expected a Config, a mapping or a path"):
        Config.from_any(3)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"model: {path", "line 1"),
        (b"a: 1\na: 2", "'a' stands twice"),
        (b"1: 2", "1 is used as a key"),
        (b"- 1", "a mapping of keys"),
        (b"", "a mapping of keys"),
        (b"\xff\xfe\xff", "not UTF-8"),
        (b"a: !!python/object:os.system x", "not valid YAML"),
        (b"a: 0b_", "not valid YAML"),
        (b"&a [*a]", "not valid YAML"),
        (b"[" * 1500, "not valid YAML"),
    ],
)
def test_damaged_files(tmp_path, text, part):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=part) as caught:
        config.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "/", "no/such/file.yaml"])
def test_no_such_file(name):
    with pytest.raises(UserError, match="no such file"):
        config.load(name)


# ---- Whatever comes in, a configuration or a UserError comes out


def known_keys(value, path=""):
    """Every dotted key of a configuration."""
    for key, inner in value.items():
        yield path + key
        if isinstance(inner, dict):
            yield from known_keys(inner, f"{path}{key}.")


# Losses with a colon would import modules by name.
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.sampled_from(
        ["", "all", "best", "kto", "sft", "lists", "1e-6", "sgd", "none", "nan", "1e999", "\ud800", "日本"]
    ),
    st.text(st.characters(exclude_characters=":"), max_size=5),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "path", "r", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = sorted({*known_keys(make(**{"model.lora.r": 1}).model_dump()), "data.train.0", "data.train.0.limit.pairs"})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text("abl.0", max_size=6), VALUES, max_size=3))
def test_any_values_give_a_configuration_or_a_user_error(overrides):
    try:
        one = make(**overrides)
    except UserError:
        pass
    else:
        again = Config.from_any(yaml.safe_load(config.dump(one)))
        assert again == one
        assert config.summary(one)
        assert config.maths_hash(one) == config.maths_hash(again)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=20)
    | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(st.characters(exclude_characters=":")))
)
def test_any_override_gives_a_configuration_or_a_user_error(text):
    with contextlib.suppress(UserError):
        config.load("quickstart", overrides=[text])
