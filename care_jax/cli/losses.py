"""The command `care-jax losses`."""

import argparse
import sys

from care_jax.cli.command import Subparsers, check_picture, command
from care_jax.errors import UserError
from care_jax.textfiles import writing


def add(commands: Subparsers) -> None:
    """Adds the command."""
    losses = command(commands, "losses", _losses, "list the losses: hyperparameters, formula, paper; or draw one")
    losses.add_argument("name", metavar="NAME", nargs="?", help="a loss, or your own as module:function")
    losses.add_argument("--plot", metavar="FILE", help="draw the loss and its slope against its margin (PNG, PDF, SVG)")


def _losses(arguments: argparse.Namespace) -> int:
    from care_jax.losses import catalog

    if arguments.plot is None:
        sys.stdout.write(catalog.listing(arguments.name))
        return 0
    if arguments.name is None:
        raise UserError("--plot: found no loss, expected care-jax losses NAME --plot FILE")
    check_picture(arguments.plot)
    with writing("--plot", arguments.plot):
        print(catalog.draw(arguments.name, arguments.plot))
    return 0
