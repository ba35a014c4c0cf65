"""`care-jax train`."""

import argparse
import os
import pathlib
import sys

from care_jax.cli.command import command
from care_jax.errors import FAILED, INTERRUPTED, UserError, nearest

_MORE = """\
RECIPE and MACHINE are YAML files, or names of what comes with the package; of a key set twice the later value holds.
A value is YAML: loss.beta=0.2, data.pairs.policy=all, data.train.0.path=care.jsonl, data.eval={questions: 64}.
With --from-manifest all words are machines and keys; give output_dir=FOLDER to repeat a run in another place.
Setting loss.name resets the loss's other keys to its defaults. Run again, a stopped run goes on where it was saved.
"""


def add(commands) -> None:
    """Adds the command to the parser."""
    train = command(commands, "train", _train, "train a model by a recipe", _MORE)
    train.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe's file or name, such as quickstart")
    train.add_argument("rest", metavar="MACHINE|key=value", nargs="*", help="machines, then single keys")
    train.add_argument(
        "--from-manifest", metavar="F", type=pathlib.Path, help="repeat the run of a manifest.json, in place of RECIPE"
    )
    train.add_argument("--dry-run", action="store_true", help="print the whole configuration as YAML, train nothing")


def _train(arguments: argparse.Namespace) -> int:
    from care_jax import config

    given = [] if arguments.recipe is None else [arguments.recipe]
    words = arguments.rest if arguments.from_manifest is None else [*given, *arguments.rest]
    overrides = [one for one in words if "=" in one]
    machines = [one for one in words if "=" not in one]
    identity = None
    if arguments.from_manifest is not None:
        from care_jax.training.run.manifest import read_manifest

        loaded, identity = read_manifest(arguments.from_manifest, machines, overrides)
    elif given:
        loaded = config.load(*given, *machines, overrides=overrides)
    else:
        raise UserError("train: found no RECIPE (a file, or a name such as quickstart) and no --from-manifest F")
    _check_readers(loaded)
    if arguments.dry_run:
        sys.stdout.write(config.dump(loaded))
        return 0
    import jax

    from care_jax.cli import compiled
    from care_jax.stopping import Interrupted
    from care_jax.training import loop
    from care_jax.training.errors import ProcessLost, RunFailed, out_of_memory

    compiled.keep()
    try:
        if identity is None:
            loop.train(loaded)
        else:
            loop.repeat(loaded, identity, str(arguments.from_manifest))
    except Interrupted as stopped:
        print(f"care-jax: {stopped}", file=sys.stderr)
        return INTERRUPTED
    except RunFailed as wrong:
        print(f"care-jax: {wrong}", file=sys.stderr, flush=True)
        if isinstance(wrong, ProcessLost):
            os._exit(FAILED)  # the usual way out waits for the one that is gone, and is aborted
        return FAILED
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        print(f"care-jax: out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        _advise(loaded)
        return FAILED
    return 0


def _advise(config) -> None:
    """What `plan` says of this run on these devices, and the nearest change that fits, on stderr."""
    import jax

    from care_jax import plan as planning
    from care_jax.plan import targets, text

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if jax.process_count() > 1:  # what is left of this job may not be able to compile for all of it
        say(f"what would fit: care-jax plan, with the arguments of this run and {targets.plan_options(jax.devices())}")
        return
    say(text.as_text(planning.plan(config, targets.local(), say=say)))


def _check_readers(config) -> None:
    """The readers' names are the data's affair, which the configuration does not know."""
    from care_jax.data.readers.registry import READERS

    evaluation = config.data.eval if isinstance(config.data.eval, tuple) else ()
    for key, sources in (("data.train", config.data.train), ("data.eval", evaluation)):
        for index, source in enumerate(sources):
            if source.reader not in READERS:
                raise UserError(
                    f"{key}.{index}.reader: found {source.reader!r}{nearest(source.reader, list(READERS))}, "
                    f"expected {' or '.join(READERS)}"
                )
