"""The entry point: results on stdout, progress and errors on stderr, one message for a user's mistake.

Exit status: 0 done; 1 failure; 2 a mistake of the user; 3 leakage found; 75 interrupted and saved, run again.
"""

import argparse
import os
import sys
import threading
from collections.abc import Sequence

from care_jax import __version__
from care_jax.cli import data, evaluate, judge, losses, models, plan, report, study, train
from care_jax.errors import ENDED_BY_USER, FAILED, INTERRUPTED, LEAKAGE, MISTAKE, Leakage, UserError, nearest

# Shorter than jax waits at the exit, and long enough for the other processes to report the same mistake.
_EXIT_SECONDS = 20.0

# Each of them adds its commands. A command imports what it runs when it runs, so that --help starts fast.
_PARTS = (train, plan, data, models, evaluate, judge, report, study, losses)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    status = _run(argv)
    jax = sys.modules.get("jax")
    if status not in (0, INTERRUPTED) and jax is not None and jax.distributed.is_initialized():
        # At its exit, a process waits for the others. If these wait for it elsewhere, they never arrive, and jax would
        # abort the process and lose its exit status.
        timer = threading.Timer(_EXIT_SECONDS, os._exit, (status,))
        timer.daemon = True
        timer.start()
    return status


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
    except SystemExit as end:  # argparse has printed its message
        return end.code if isinstance(end.code, int) else MISTAKE
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except (Leakage, UserError) as error:
        print(f"care-jax: {error}", file=sys.stderr)
        return LEAKAGE if isinstance(error, Leakage) else MISTAKE
    except KeyboardInterrupt:  # before the trainer handles signals, or a second time
        print("care-jax: interrupted", file=sys.stderr)
        return ENDED_BY_USER
    except BrokenPipeError:  # the reader of stdout has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; the parsed arguments hold the command's function as `run`."""
    top = argparse.ArgumentParser(
        prog="care-jax", allow_abbrev=False, description="Preference learning about culture, in pure JAX."
    )
    top.add_argument("--version", action="version", version=__version__, help="print the version and exit")
    commands = top.add_subparsers(metavar="COMMAND", dest="command")
    for part in _PARTS:
        part.add(commands)
    return top


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments. Positional arguments may follow an option, which argparse alone does not allow."""
    top = parser()
    arguments, remaining = top.parse_known_args(argv)
    if not hasattr(arguments, "run"):
        top.print_help(sys.stderr)
        raise SystemExit(MISTAKE)
    options = [word for word in remaining if word.startswith("-")]
    if options or (remaining and not hasattr(arguments, "rest")):
        unknown = (options or remaining)[0]
        valid = [name for action in arguments.parser._actions for name in action.option_strings]
        arguments.parser.error(f"unrecognized argument: {unknown}{nearest(unknown.partition('=')[0], valid)}")
    if remaining:
        arguments.rest = [*arguments.rest, *remaining]
    return arguments
