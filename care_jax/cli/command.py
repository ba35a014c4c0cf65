"""What every command of the command line is made of."""

import argparse

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
