"""Finding losses by name, and what a signature registers."""

import functools
import re
import textwrap
from typing import Optional

import pytest

from care_jax import losses
from care_jax.errors import UserError
from care_jax.testing import example


def test_built_ins_are_attributes_and_names():
    assert losses.names() == sorted(losses.names())
    assert all(getattr(losses, name) is losses.get(name) for name in losses.names())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpoo", r"unknown loss 'dpoo' \(did you mean 'dpo'\?\)\. Built in: aot, "),
        ("sigmoid", "TRL's 'sigmoid' is 'dpo'"),
        ("cdpo", "'dpo' with label_smoothing"),
        ("wpo", "more than one number per response"),
        ("no_such_module:loss", "no module 'no_such_module'"),
        ("care_jax.losses:dpoo", r"'dpoo' is missing in .*__init__\.py \(did you mean 'dpo'\?\)"),
        ("care_jax.losses:QUANTITIES", "is not a function"),
        (":loss", "neither a built-in loss nor 'module:function'"),
        ("json:dump", r"loss dump: parameter \*kw is not supported"),
    ],
)
def test_an_unknown_name(name, message):
    with pytest.raises(UserError, match=message):
        losses.get(name)


def test_a_file_in_the_working_directory(tmp_path, monkeypatch):
    text = """
        from __future__ import annotations

        def mine(chosen_logps, rejected_logps, *,
                 steep: float = 1, on=True, power: int = 2, kind="x", other: object = 0.5, cap: float | None = None):
            return rejected_logps - chosen_logps, {}

        def broken(chosen_logps, rejected_logp, *, beta=0.1):
            return chosen_logps, {}
    """
    (tmp_path / "losses_of_this_test.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    loss = losses.get("losses_of_this_test:mine")
    spec = losses.spec(loss)
    assert (spec.view, spec.needs, spec.needs_ref, spec.whole_step) == (
        "pairs",
        ("chosen_logps", "rejected_logps"),
        False,
        False,
    )
    assert spec.hyperparameters == {
        "steep": (float, 1),
        "on": (bool, True),
        "power": (int, 2),
        "kind": (str, "x"),
        "other": (float, 0.5),
        "cap": (float, None),
    }
    with pytest.raises(UserError, match=r"unknown quantity 'rejected_logp' \(did you mean 'rejected_logps'\?\)"):
        losses.get("losses_of_this_test:broken")


def test_an_import_that_fails_inside_the_users_module_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "imports_what_is_not_there.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        losses.get("imports_what_is_not_there:loss")


def test_spec_sees_through_partial():
    bound = functools.partial(functools.partial(losses.kto, beta=0.3), desirable_weight=1.2)
    spec = losses.spec(bound)
    assert spec.needs == ("logps", "ref_logps", "desirable", "kl")
    assert spec.needs_kl
    assert spec.needs_ref
    assert spec.hyperparameters["beta"] == (float, 0.3)
    assert losses.spec(functools.partial(losses.aot, beta=0.3)).whole_step
    assert losses.spec(losses.whole_step(functools.partial(losses.dpo, beta=0.3))).whole_step
    assert not losses.spec(losses.dpo).whole_step


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logps, chosen_logps: 0, "quantities of two views: 'chosen_logps' of pairs, 'logps' of unpaired"),
        (lambda chosen_logps, beta: 0, "unknown quantity 'beta'.*hyperparameters come after"),
        (lambda chosen_logps, *, beta: 0, "hyperparameter 'beta' has no default"),
        (lambda chosen_logps, *, rejected_logps=0: 0, "'rejected_logps' is a quantity: put it before"),
        (lambda ref_logps, kl: 0, "takes no log-probabilities of the policy"),
        (lambda chosen_logps, **options: 0, "is not supported"),
        (lambda chosen_logps, *, weight=1.0: 0, "cannot be called 'weight'.*rename it"),
        (lambda chosen_logps, *, cap=None: 0, r"'cap' has the default None.*annotate it, as in `float \| None`"),
        (lambda chosen_logps, /: 0, "'chosen_logps' is before a /"),
        (max, "max: has no signature"),
    ],
)
def test_a_signature_that_is_not_of_a_loss(loss, message):
    with pytest.raises(UserError, match=message):
        losses.spec(loss)


def test_bind_types_its_values():
    bound = losses.bind("dpo", beta=1, label_smoothing="1e-2")
    assert bound.keywords == {"beta": 1.0, "label_smoothing": 0.01}
    assert isinstance(bound.keywords["beta"], float)


def of_many_types(
    chosen_logps,
    *,
    cap: float | None = None,
    floor: Optional[int] = None,  # noqa: UP045
    ends=(0.0, 1.0),
    power: int = 2,
):
    return -chosen_logps, {}


def test_bind_types_optional_values_and_lists():
    name = f"{__name__}:of_many_types"
    assert {key: kind for key, (kind, _) in losses.spec(of_many_types).hyperparameters.items()} == {
        "cap": float,
        "floor": int,
        "ends": tuple,
        "power": int,
    }
    given = {"cap": "1e-6", "floor": 3.0, "ends": [2, 3], "power": "1e1"}
    assert losses.bind(name, **given).keywords == {"cap": 1e-6, "floor": 3, "ends": (2, 3), "power": 10}
    assert losses.bind(name, cap=None, floor=None).keywords == {"cap": None, "floor": None}
    for key, value, kind in (("power", 1.5, r"whole number \(its default"), ("power", float("inf"), "whole"),
                             ("cap", "x", "finite number"), ("ends", 1, "a list")):  # fmt: skip
        with pytest.raises(UserError, match=rf"loss\.{key}: .*{kind}"):
            losses.bind(name, **{key: value})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("simpo", {"gamma": 0.5}, r"loss\.gamma: .*set gamma_beta_ratio, which is gamma / beta"),
        ("cpo_simpo", {"simpo_gamma": 0.5}, "set gamma_beta_ratio"),
        ("dpo", {"bta": 0.5}, r"loss\.bta: .*\(did you mean 'beta'\?\).*beta = 0\.1, label_smoothing = 0\.0"),
        ("dpo", {"beta": "much"}, r"loss\.beta: loss 'dpo' expects a finite number, found 'much'"),
        ("dpo", {"beta": True}, "expects a finite number, found True"),
        ("dpo", {"beta": None}, "expects a finite number, found None"),
        ("simpo", {"gamma_beta_ratio": float("nan")}, "expects a finite number, found nan"),
        ("simpo", {"gamma_beta_ratio": "inf"}, "expects a finite number, found 'inf'"),
        ("simpo", {"gamma_beta_ratio": 10**400}, "expects a finite number"),
        ("sft", {"beta": 0.1}, "It takes no hyperparameter"),
        ("ipo", {"tau": 0.1}, "beta is IPO's tau here"),
    ],
)
def test_bind_refuses(name, values, message):
    with pytest.raises(UserError, match=message):
        losses.bind(name, **values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dpo", {"beta": 0.0}, "beta must be above 0, found 0"),
        ("robust_dpo", {"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5, found 0.5"),
        ("exo_pair", {"label_smoothing": 0.0}, "label_smoothing must be above 0"),
        ("discopop", {"tau": 1.0}, "tau must be above 0 and below 1, found 1"),
    ],
)
def test_values_out_of_range(name, values, message):
    """Refused by `bind`, before a model is loaded, and in a call."""
    with pytest.raises(UserError, match=message):
        losses.bind(name, **values)
    loss = functools.partial(losses.get(name), **values)
    with pytest.raises(UserError, match=message):
        loss(**example(losses.spec(loss)))


@pytest.mark.parametrize(
    ("counts", "ratio", "advice"),
    [
        ((100, 100, 1.0, 1.0), 1.0, ""),
        ((100, 100, 1.33, 1.0), 1.33, ""),
        ((50, 200, 1.0, 1.0), 0.25, r"desirable_weight in \[4, 5\.33\] or undesirable_weight in \[0\.188, 0\.25\]"),
        ((10, 0, 1.0, 1.0), float("inf"), "the undesirable responses weigh nothing"),
    ],
)
def test_ktos_published_rule(counts, ratio, advice):
    got, text = losses.kto_weight_ratio(*counts)
    assert got == pytest.approx(ratio)
    assert re.search(advice, text)
    assert bool(text) == bool(advice)


@pytest.mark.parametrize("counts", [(872, 1777), (1777, 450), (3, 7), (99999, 1), (1, 31), (990, 1)])
def test_ktos_advice_keeps_the_rule_as_it_is_printed(counts):
    _, text = losses.kto_weight_ratio(*counts)
    ranges = [[float(end) for end in ends] for ends in re.findall(r"weight in \[(\S+), (\S+)\]", text)]
    assert len(ranges) == 2
    for place, ends in enumerate(ranges):
        assert ends[1] / ends[0] > 1.3
        for end in ends:
            weights = (end, 1.0) if place == 0 else (1.0, end)
            assert losses.kto_weight_ratio(*counts, *weights)[1] == "", weights
