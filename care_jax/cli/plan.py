"""`care-jax plan`: whether a run fits on a machine."""

import argparse
import json
import sys

from care_jax.cli.command import Subparsers, command
from care_jax.errors import FAILED

_MORE = """\
RECIPE, MACHINE and key=value are those of `train`. Without --topology and --memory, the plan is for the target of the
machine file (v5e-64: v5e:8x8), or for this machine if none is named. --devices N plans for N cards with the memory of
--memory or of the machine file. No weights and no data are read. --topology needs no TPU, only libtpu
(pip install "care-jax[plan]"). The exit status is 1 if the run does not fit.
"""


def add(commands: Subparsers) -> None:
    """Adds the command to the parser."""
    plan = command(commands, "plan", _plan, "compile a run for a machine and say whether it fits", _MORE)
    plan.add_argument("recipe", metavar="RECIPE", help="file or name of a recipe, such as quickstart")
    plan.add_argument("rest", metavar="MACHINE|key=value", nargs="*", help="machines, then single keys")
    plan.add_argument("--topology", metavar="NAME", action="append", default=[], help="such as v5p:2x2x2; repeatable")
    plan.add_argument("--memory", metavar="SIZE", help="memory of a device that is not here, such as 24GB")
    plan.add_argument("--devices", metavar="N", type=int, help="number of cards that are not here (default: 1)")
    plan.add_argument("--no-advice", action="store_true", help="if it does not fit, do not look for a change that does")
    plan.add_argument("--json", action="store_true", help="print one JSON object per target, one per line")


def _plan(arguments: argparse.Namespace) -> int:
    from care_jax import config

    overrides = [word for word in arguments.rest if "=" in word]
    machines = [word for word in arguments.rest if "=" not in word]
    loaded = config.load(arguments.recipe, *machines, overrides=overrides)
    from care_jax.plan import planning, targets, text

    memory = None if arguments.memory is None else targets.parse_memory(arguments.memory)
    fits = True
    for target in targets.targets(machines, arguments.topology, memory, arguments.devices):
        plan = planning.plan(loaded, target, advise=not arguments.no_advice, say=_say)
        print(json.dumps(text.as_json(plan)) if arguments.json else text.as_text(plan), flush=True)
        fits &= plan.fits is not False
    return 0 if fits else FAILED


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
