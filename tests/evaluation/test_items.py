"""The options of tasks, which the command line and the configurations share."""

import argparse

from care_jax.cli import evaluate
from care_jax.config.blocks import TaskConfig
from care_jax.evaluation.items import Options


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
