"""The command `care-jax`: results on stdout, progress and errors on stderr, one clear message for a user's mistake.

Exit status: 0 done; 1 failure; 2 a mistake in what was given; 75 interrupted and saved, run again.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from care_jax.errors import UserError, nearest

_PICTURES = (".png", ".pdf", ".svg")
FAILED, MISTAKE, INTERRUPTED, ENDED_BY_USER = 1, 2, 75, 130

_TRAIN = """\
RECIPE and MACHINE are YAML files, or names of what comes with the package; of a key set twice the later value holds.
A value is YAML: loss.beta=0.2, data.pairs.policy=all, data.train.0.path=care.jsonl, data.eval={questions: 64}.
Setting loss.name resets the loss's other keys to its defaults. Run again, a stopped run goes on where it was saved.
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line; each subcommand's function is `run`."""
    top = argparse.ArgumentParser(
        prog="care-jax", allow_abbrev=False, description="Preference learning about culture, in pure JAX."
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(metavar="COMMAND", dest="command")

    train = _command(commands, "train", _train, "train a model by a recipe", _TRAIN)
    train.add_argument("recipe", metavar="RECIPE", help="a recipe's file or name, such as quickstart")
    train.add_argument("rest", metavar="MACHINE|key=value", nargs="*", help="machines, then single keys")
    train.add_argument("--dry-run", action="store_true", help="print the whole configuration as YAML, train nothing")

    data = _command(commands, "data", _data, "look at a dataset")
    of_data = data.add_subparsers(metavar="COMMAND", dest="data_command")
    inspect = _command(of_data, "inspect", _inspect, "what is in a dataset, what was dropped and why")
    inspect.add_argument("data", metavar="D", help="a file, a folder, a hub id, or `sample`")
    inspect.add_argument("--reader", default="care", metavar="R", help="how to read it (default: care)")
    inspect.add_argument("--json", action="store_true", help="one JSON object on stdout")

    losses = _command(commands, "losses", _losses, "every loss, or one: view, needs, hyperparameters, formula, source")
    losses.add_argument("name", metavar="NAME", nargs="?", help="a loss, or your own as module:function")
    losses.add_argument("--plot", metavar="FILE", help="draw the loss and its slope against its margin (PNG, PDF, SVG)")
    return top


def _command(commands, name: str, run, summary: str, more: str = "") -> argparse.ArgumentParser:
    one = commands.add_parser(
        name,
        allow_abbrev=False,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.set_defaults(run=run, parser=one)
    return one


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    try:
        arguments = _parsed(sys.argv[1:] if argv is None else argv)
    except SystemExit as end:  # argparse has said what there is to say
        return end.code if isinstance(end.code, int) else MISTAKE
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"care-jax: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:  # before the trainer listens, or a second time
        print("care-jax: interrupted", file=sys.stderr)
        return ENDED_BY_USER
    except BrokenPipeError:  # whoever read stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """argparse stops taking positionals at the first option; here they may stand on both sides of it."""
    top = parser()
    arguments, left = top.parse_known_args(argv)
    if arguments.version:
        arguments.run = _version
        return arguments
    own = getattr(arguments, "parser", top)
    if not hasattr(arguments, "run"):
        top.print_help(sys.stderr)
        raise SystemExit(MISTAKE)
    if left and (not hasattr(arguments, "rest") or any(one.startswith("-") for one in left)):
        unknown = next((one for one in left if one.startswith("-")), left[0])
        options = [name for action in own._actions for name in action.option_strings]
        own.error(f"unrecognized argument: {unknown}{nearest(unknown.partition('=')[0], options)}")
    if left:
        arguments.rest = [*arguments.rest, *left]
    return arguments


def _version(arguments: argparse.Namespace) -> int:
    import care_jax

    print(care_jax.__version__)
    return 0


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
    from care_jax.training.signals import Interrupted

    try:
        loop.train(loaded)
    except Interrupted as stopped:
        print(f"care-jax: {stopped}", file=sys.stderr)
        return INTERRUPTED
    except loop.Diverged as diverged:
        print(f"care-jax: {diverged}", file=sys.stderr)
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


def _data(arguments: argparse.Namespace) -> int:
    arguments.parser.print_help(sys.stderr)
    return MISTAKE


def _inspect(arguments: argparse.Namespace) -> int:
    import json

    from care_jax.data.readers import read

    reading = read(arguments.reader, arguments.data)
    account = reading.report.to_json()
    if arguments.json:
        print(json.dumps(account, ensure_ascii=False))
        return 0
    print(f"{account['rows']} rows, {account['questions']} questions, {account['responses']} responses")
    counts = {"dropped": {reason: count for reason, count in account["dropped"].items() if count}}
    counts |= {"ratings": account["ratings"]} | account["by"] | {"pairs (gap 1)": account["pairs"]}
    for title, numbers in counts.items():
        shown = ", ".join(f"{name} {count}" for name, count in numbers.items())
        print(f"{title:<14} {shown or 'none'}")
    for entry in reading.report.rejected[:10]:
        row = f"{entry['file']}, row {entry['row']}, {entry['field']}"
        print(f"  {row}: {entry['reason']}: {str(entry['found'])[:80]}")
    if len(reading.report.rejected) > 10:
        print(f"  ... and {len(reading.report.rejected) - 10} more")
    return 0


def _losses(arguments: argparse.Namespace) -> int:
    import pathlib

    from care_jax.losses import catalog

    if arguments.plot is None:
        sys.stdout.write(catalog.listing(arguments.name))
        return 0
    if arguments.name is None:
        raise UserError("--plot: found no loss, expected care-jax losses NAME --plot FILE")
    suffix = pathlib.Path(arguments.plot).suffix.lower()
    if suffix not in _PICTURES:
        raise UserError(f"--plot: found {arguments.plot!r}, expected a file ending in {', '.join(_PICTURES)}")
    try:
        print(catalog.draw(arguments.name, arguments.plot))
    except OSError as error:
        raise UserError(f"--plot: cannot write {arguments.plot!r}: {error.strerror}") from None
    return 0
