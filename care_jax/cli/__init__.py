"""The command `care-jax`: results on stdout, progress and errors on stderr, one clear message for a user's mistake.

Exit status: 0 done; 1 failure; 2 a mistake in what was given; 3 leakage found; 75 interrupted and saved, run again.
"""

import argparse
import os
import sys
import threading
from collections.abc import Sequence

from care_jax.cli import data, evaluate, losses, models, plan, study, train
from care_jax.errors import ENDED_BY_USER, FAILED, INTERRUPTED, LEAKAGE, MISTAKE, Leakage, UserError, nearest

_FAILING_ALIKE_SECONDS = 20.0  # below what jax waits at the exit, above what others need to see the same mistake

# Each adds its commands; what they run is imported when it runs, so that --help costs nothing.
_PARTS = (train, plan, data, models, evaluate, study, losses)


def parser() -> argparse.ArgumentParser:
    """The whole command line; each subcommand's function is `run`."""
    top = argparse.ArgumentParser(
        prog="care-jax", allow_abbrev=False, description="Preference learning about culture, in pure JAX."
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(metavar="COMMAND", dest="command")
    for part in _PARTS:
        part.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    status = _status(argv)
    jax = sys.modules.get("jax")
    if status not in (0, INTERRUPTED) and jax is not None and jax.distributed.is_initialized():
        # At its exit a process of several waits for the others. Those that wait for it, in turn, never come, and jax
        # would abort it, its status lost.
        late = threading.Timer(_FAILING_ALIKE_SECONDS, os._exit, (status,))
        late.daemon = True
        late.start()
    return status


def _status(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parsed(sys.argv[1:] if argv is None else argv)
    except SystemExit as end:  # argparse has said what there is to say
        return end.code if isinstance(end.code, int) else MISTAKE
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except Leakage as found:
        print(f"care-jax: {found}", file=sys.stderr)
        return LEAKAGE
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
