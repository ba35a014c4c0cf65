"""The whole configuration: what is merged, that it survives a round trip, and that any input is accepted or refused."""

import contextlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax import config, losses
from care_jax.config import Config, files, steps_of
from care_jax.errors import UserError

MINIMAL = {"model": {"path": "sample"}, "data": {"train": [{"path": "sample"}]}}


RECIPES, MACHINES = files.shipped_names("recipe"), files.shipped_names("machine")


def make(**overrides) -> Config:
    return Config.from_any(MINIMAL, **overrides)


def refused(**overrides) -> str:
    with pytest.raises(UserError) as caught:
        make(**overrides)
    return str(caught.value)


def test_later_wins(recipe):
    base = recipe(yaml.safe_dump(MINIMAL | {"seed": 1, "batch": {"examples": 4, "microbatch_rows": 2}}))
    first = recipe("batch: {microbatch_rows: 16}\nseed: 2", "first.yaml")
    second = recipe("seed: 3", "second.yaml")
    resolved = config.load(base, first, second)
    assert (resolved.seed, resolved.batch.examples, resolved.batch.microbatch_rows) == (3, 4, 16)
    assert config.load(base, second, first).seed == 2
    assert config.load(base, first, overrides=["seed=7", "seed=8"]).seed == 8


def test_a_run_is_named_after_its_recipe(recipe):
    resolved = config.load(recipe(yaml.safe_dump(MINIMAL), "chinese.yaml"))
    assert (resolved.name, resolved.output_dir) == ("chinese", "runs/chinese")
    assert config.load(recipe(yaml.safe_dump(MINIMAL)), overrides=["name=other"]).output_dir == "runs/other"


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shipped_loads_with_every_machine(name):
    for machine in MACHINES:
        resolved = config.load(name, machine)
        assert resolved.name == name
        path = files.find_file(name, "recipe")
        assert path.read_text().startswith(f"# care-jax train {name}")
        assert resolved.losses[0].name == (name.split("-")[0] if "-" in name else "dpo")


def test_the_name_of_a_loss_resets_its_other_keys(recipe):
    base = recipe(yaml.safe_dump(MINIMAL | {"loss": {"name": "dpo", "beta": 0.7, "label_smoothing": 0.1}}))
    assert config.load(base).loss.hyperparameters == {"beta": 0.7, "label_smoothing": 0.1}
    defaults = {key: value for key, (_, value) in losses.spec(losses.simpo).hyperparameters.items()}
    assert config.load(base, overrides=["loss.name=simpo"]).loss.hyperparameters == defaults
    assert config.load(base, overrides=["loss.name=dpo"]).loss.hyperparameters["beta"] == 0.1
    assert config.load(base, recipe("loss: {name: ipo}", "m.yaml")).loss.hyperparameters == {"beta": 0.1}
    # Other overrides of the loss are kept, whatever their order.
    for order in (["loss.name=simpo", "loss.beta=9"], ["loss.beta=9", "loss.name=simpo"]):
        assert config.load(base, overrides=order).loss.hyperparameters == defaults | {"beta": 9.0}
    assert Config.from_any(config.load(base), **{"loss.name": "simpo"}).loss.hyperparameters == defaults


@pytest.mark.parametrize("name", ["quickstart", "kto-gemma2-9b"])
def test_round_trip(recipe, name):
    resolved = config.load(name, overrides=["model.lora={r: 4}", "data.train.0.limit.pairs=7"])
    assert config.load(recipe(config.dump(resolved))) == resolved
    assert Config.from_any(resolved) is not resolved
    assert Config.from_any(resolved) == resolved
    dated = config.with_template_date(resolved, "2026-01-31")
    assert config.load(recipe(config.dump(dated))).data.template_date == "2026-01-31"


def test_values_of_a_run_with_machines_and_keys_over_them():
    values = make(seed=3).model_dump(mode="json")
    resolved = config.resolve(values, ["cpu"], ["seed=4"])
    assert (resolved.seed, resolved.model.remat) == (4, "none")
    assert config.parse(config.dump(resolved)) == resolved


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


def test_several_mistakes_are_lines_of_one_message():
    text = refused(seed=-1, **{"batch.examples": 0})
    assert "seed" in text
    assert "batch.examples" in text
    assert text.count("\n") == 1


def test_missing_required_keys_are_named():
    with pytest.raises(UserError, match=r"model: found nothing(.|\n)*data: found nothing"):
        Config.from_any({})
    with pytest.raises(UserError, match="expected a Config, a mapping or a path"):
        Config.from_any(3)


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
        resolved = make(**overrides)
    except UserError:
        pass
    else:
        again = Config.from_any(yaml.safe_load(config.dump(resolved)))
        assert again == resolved
        assert config.summary(resolved)
        assert config.numeric_hash(resolved) == config.numeric_hash(again)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=20)
    | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(st.characters(exclude_characters=":")))
)
def test_any_override_gives_a_configuration_or_a_user_error(text):
    with contextlib.suppress(UserError):
        config.load("quickstart", overrides=[text])
