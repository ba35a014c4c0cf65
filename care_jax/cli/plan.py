"""`care-jax plan`."""

import argparse
import json
import sys

from care_jax.cli.command import command
from care_jax.errors import FAILED

_MORE = """\
RECIPE, MACHINE and key=value as in `train`. Without --topology and --memory the plan is for the machine file's own
target (v5e-64: v5e:8x8), else for this machine; --devices N: for N cards of --memory or of the machine file. No weights
and no data are read; --topology needs no TPU, only libtpu (pip install "care-jax[plan]"). Exit status 1: it does not
fit.
"""


def add(commands) -> None:
    """Adds the command to the parser."""
    plan = command(commands, "plan", _plan, "compile a run for a machine and say whether it fits", _MORE)
    plan.add_argument("recipe", metavar="RECIPE", help="a recipe's file or name, such as quickstart")
    plan.add_argument("rest", metavar="MACHINE|key=value", nargs="*", help="machines, then single keys")
    plan.add_argument("--topology", metavar="NAME", action="append", default=[], help="such as v5p:2x2x2; may repeat")
    plan.add_argument("--memory", metavar="SIZE", help="of a device that is not here, such as 24GB")
    plan.add_argument("--devices", metavar="N", type=int, help="as many cards that are not here, in place of one")
    plan.add_argument("--no-advice", action="store_true", help="where it does not fit, look for nothing that would")
    plan.add_argument("--json", action="store_true", help="one JSON object a target, a line each")


def _plan(arguments: argparse.Namespace) -> int:
    from care_jax import config

    overrides = [one for one in arguments.rest if "=" in one]
    machines = [one for one in arguments.rest if "=" not in one]
    loaded = config.load(arguments.recipe, *machines, overrides=overrides)
    from care_jax import plan as planning
    from care_jax.plan import targets, text

    memory = None if arguments.memory is None else targets.parse_memory(arguments.memory)
    fits = True
    for target in targets.targets(machines, arguments.topology, memory, arguments.devices):
        found = planning.plan(loaded, target, advise=not arguments.no_advice, say=_say)
        print(json.dumps(text.as_json(found)) if arguments.json else text.as_text(found), flush=True)
        fits &= found.fits is not False
    return 0 if fits else FAILED


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
