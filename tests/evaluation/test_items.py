"""The options of tasks, which the command line and the configurations share."""

import argparse
from typing import get_args, get_type_hints

from care_jax.cli import evaluate
from care_jax.config.blocks import SourceConfig, TaskConfig
from care_jax.data.readers.registry import QUERY_LANGUAGES
from care_jax.evaluation.items import Method, Mode, Options, QueryLanguage


def test_the_configuration_and_the_command_line_have_every_option_with_the_same_default():
    parser = argparse.ArgumentParser()
    evaluate.add(parser.add_subparsers())
    arguments = vars(parser.parse_args(["evaluate"]))
    config = dict(TaskConfig(task="mcq"))
    for values in (arguments, config):
        assert set(Options.names()) <= set(values)
        assert Options.select(values) == Options()


def test_options_are_selected_from_other_keys():
    assert Options.select({"task": "mcq", "limit": 3, "mode": None}) == Options(limit=3)


def test_the_configuration_and_the_readers_have_the_same_choices():
    hints = get_type_hints(TaskConfig)
    assert (hints["mode"], hints["method"], hints["query_language"]) == (Mode, Method, QueryLanguage)
    assert get_type_hints(SourceConfig)["query_language"] == QueryLanguage
    assert get_args(QueryLanguage) == QUERY_LANGUAGES
