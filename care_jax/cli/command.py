"""What every command of the command line is made of."""

import argparse

FAILED, MISTAKE, LEAKAGE, INTERRUPTED, ENDED_BY_USER = 1, 2, 3, 75, 130
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
