"""`care-jax train`."""

import argparse
import functools
import os
import pathlib
import sys

from care_jax.cli.command import Subparsers, command
from care_jax.errors import FAILED, INTERRUPTED, UserError
from care_jax.stopping import Interrupted

_MORE = """\
RECIPE and MACHINE are YAML files, or names of files that come with the package. If a key is set twice, the later value
counts. Values are YAML: loss.beta=0.2, data.pairs.policy=all, data.train.0.path=care.jsonl, data.eval={questions: 64}.
Setting loss.name resets the loss's other keys to its defaults.
With --from-manifest there is no RECIPE; give output_dir=FOLDER to repeat a run in another folder.
To resume a run that was stopped, run the same command again.
"""


def add(commands: Subparsers) -> None:
    """Adds the command to the parser."""
    train = command(commands, "train", _train, "train a model by a recipe", _MORE)
    train.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe's file or name, such as quickstart")
    train.add_argument("rest", metavar="MACHINE|key=value", nargs="*", help="machines, then single keys")
    train.add_argument(
        "--from-manifest", metavar="F", type=pathlib.Path, help="repeat the run of a manifest.json, without a RECIPE"
    )
    train.add_argument("--dry-run", action="store_true", help="print the whole configuration as YAML, train nothing")


def _train(arguments: argparse.Namespace) -> int:
    config, identity = _read_configuration(arguments)
    _check_readers(config)
    if arguments.dry_run:
        from care_jax.config import dump

        sys.stdout.write(dump(config))
        return 0
    import jax

    from care_jax.cli import compilation_cache
    from care_jax.training import loop
    from care_jax.training.errors import ProcessLost, RunFailed, out_of_memory

    compilation_cache.keep_compiled_programs()
    try:
        if identity is None:
            loop.train(config)
        else:
            loop.repeat(config, identity, str(arguments.from_manifest))
    except Interrupted as interruption:
        print(f"care-jax: {interruption}", file=sys.stderr)
        return INTERRUPTED
    except RunFailed as failure:
        print(f"care-jax: {failure}", file=sys.stderr, flush=True)
        if isinstance(failure, ProcessLost):
            os._exit(FAILED)  # a normal exit would wait for the lost process, and jax would abort it
        return FAILED
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        print(f"care-jax: out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        _print_plan(config)
        return FAILED
    return 0


def _read_configuration(arguments: argparse.Namespace):
    """Returns the configuration, and the identity that the run must have if a manifest names one (else None)."""
    from care_jax import config

    recipe = [] if arguments.recipe is None else [arguments.recipe]
    words = arguments.rest if arguments.from_manifest is None else [*recipe, *arguments.rest]
    overrides = [word for word in words if "=" in word]
    machines = [word for word in words if "=" not in word]
    if arguments.from_manifest is not None:
        from care_jax.training.run.manifest import read_manifest

        return read_manifest(arguments.from_manifest, machines, overrides)
    if recipe:
        return config.load(*recipe, *machines, overrides=overrides), None
    raise UserError("train: found no RECIPE (a file, or a name such as quickstart) and no --from-manifest F")


def _print_plan(config) -> None:
    """Prints on stderr what `plan` computes for this run on these devices, and the nearest change that fits."""
    import jax

    from care_jax import plan as planning
    from care_jax.plan import targets, text

    say = functools.partial(print, file=sys.stderr, flush=True)
    if jax.process_count() > 1:  # the processes that are left may not be able to compile for all of them
        say(f"what would fit: care-jax plan, with the arguments of this run and {targets.plan_options(jax.devices())}")
        return
    say(text.as_text(planning.plan(config, targets.local(), say=say)))


def _check_readers(config) -> None:
    """Raises UserError for an unknown reader: the configuration does not know the readers of the data."""
    from care_jax.data import readers

    evaluation = config.data.eval if isinstance(config.data.eval, tuple) else ()
    for key, sources in (("data.train", config.data.train), ("data.eval", evaluation)):
        for index, source in enumerate(sources):
            readers.find_reader(source.reader, f"{key}.{index}.reader")
