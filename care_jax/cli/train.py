"""`care-jax train`."""

import argparse
import sys

from care_jax.cli.command import FAILED, INTERRUPTED, command
from care_jax.errors import UserError, nearest

_MORE = """\
RECIPE and MACHINE are YAML files, or names of what comes with the package; of a key set twice the later value holds.
A value is YAML: loss.beta=0.2, data.pairs.policy=all, data.train.0.path=care.jsonl, data.eval={questions: 64}.
Setting loss.name resets the loss's other keys to its defaults. Run again, a stopped run goes on where it was saved.
"""


def add(commands) -> None:
    """Adds the command to the parser."""
    train = command(commands, "train", _train, "train a model by a recipe", _MORE)
    train.add_argument("recipe", metavar="RECIPE", help="a recipe's file or name, such as quickstart")
    train.add_argument("rest", metavar="MACHINE|key=value", nargs="*", help="machines, then single keys")
    train.add_argument("--dry-run", action="store_true", help="print the whole configuration as YAML, train nothing")


def _train(arguments: argparse.Namespace) -> int:
    from care_jax import config

    overrides = [one for one in arguments.rest if "=" in one]
    machines = [one for one in arguments.rest if "=" not in one]
    loaded = config.load(arguments.recipe, *machines, overrides=overrides)
    _check_readers(loaded)
    if arguments.dry_run:
        sys.stdout.write(config.dump(loaded))
        return 0
    from care_jax.training import loop
    from care_jax.training.gates import GateError
    from care_jax.training.signals import Interrupted

    try:
        loop.train(loaded)
    except Interrupted as stopped:
        print(f"care-jax: {stopped}", file=sys.stderr)
        return INTERRUPTED
    except (loop.Diverged, GateError) as wrong:
        print(f"care-jax: {wrong}", file=sys.stderr)
        return FAILED
    return 0


def _check_readers(config) -> None:
    """The readers' names are the data's affair, which the configuration does not know."""
    from care_jax.data.readers import READERS

    evaluation = config.data.eval if isinstance(config.data.eval, tuple) else ()
    for key, sources in (("data.train", config.data.train), ("data.eval", evaluation)):
        for index, source in enumerate(sources):
            if source.reader not in READERS:
                raise UserError(
                    f"{key}.{index}.reader: found {source.reader!r}{nearest(source.reader, list(READERS))}, "
                    f"expected {' or '.join(READERS)}"
                )
