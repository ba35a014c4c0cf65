"""What every command of the command line is made of."""

import argparse
import contextlib
import sys
from typing import Any

from care_jax.errors import UserError

PICTURES = (".png", ".pdf", ".svg")


def command(commands, name: str, run, summary: str, more: str = "") -> argparse.ArgumentParser:
    """A subcommand `name`; `run` takes the parsed arguments and returns the exit status."""
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


def calls(one: argparse.ArgumentParser) -> None:
    """The options of whatever calls an endpoint."""
    one.add_argument("--concurrency", type=int, default=16, metavar="N", help="calls under way at once (default: 16)")
    one.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds a call may take (default: 60)")
    one.add_argument("--retries", type=int, default=5, metavar="N", help="of a failed call (default: 5)")
    one.add_argument("--requests-per-minute", type=float, metavar="N", help="at most so many calls are begun")


def at_least(*given: tuple[str, int | float | None, int | float]) -> None:
    """Raises UserError for an option below its least value."""
    for option, value, least in given:
        if value is not None and not value >= least:
            raise UserError(f"{option}: found {value}, expected at least {least:g}")


def endpoint(arguments: argparse.Namespace, model: str | None) -> Any:
    """The endpoint of --base-url, whose model is the one named or the only one that it serves."""
    from care_jax.evaluation.endpoint import Endpoint, check_url, only_model

    at_least(("--concurrency", arguments.concurrency, 1), ("--retries", arguments.retries, 0))
    at_least(("--timeout", arguments.timeout, 1e-3), ("--requests-per-minute", arguments.requests_per_minute, 1e-3))
    url = check_url(arguments.base_url)
    return Endpoint(
        url, model or only_model(url), arguments.timeout, arguments.retries, arguments.concurrency,
        arguments.requests_per_minute,
    )  # fmt: skip


@contextlib.contextmanager
def progress(total: int, what: str):
    """A bar on stderr; yields its update."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10
    with tqdm(total=total, desc=what, unit=what.removesuffix("s"), mininterval=interval) as bar:
        yield bar.update
