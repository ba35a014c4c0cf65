"""`care-jax study`: a grid of runs and its table."""

import argparse
import sys

from care_jax.cli.command import Subparsers, command
from care_jax.errors import FAILED, INTERRUPTED, UserError
from care_jax.stopping import Interrupted

_MORE = """\
STUDY is a YAML file with base, arms, grid, seeds and evaluate, or the name of a study that comes with the package.
Finished runs are kept, interrupted ones resume. With a judge by files, the study stops with exit status 75 and names
the request files. Put the answers beside them and run the same command again.
"""


def add(commands: Subparsers) -> None:
    """Adds the command to the parser."""
    study = command(commands, "study", _study, "train a grid of runs and compare them", _MORE)
    study.add_argument("study", metavar="STUDY", help="a file, or a name such as data_fraction")
    study.add_argument("--jobs", type=int, default=1, metavar="N", help="commands at once (default: 1)")
    study.add_argument("--run", dest="only", metavar="NAME", help="train only this run, as a job of its own")
    study.add_argument("--list", action="store_true", help="print the unfinished runs, each with its command")
    study.add_argument("--out", metavar="DIR", help="used in place of the study's output_dir")


def _study(arguments: argparse.Namespace) -> int:
    from care_jax.study import spec, stages

    if arguments.jobs < 1:
        raise UserError(f"--jobs: found {arguments.jobs}, expected at least 1")
    study = spec.load_study(arguments.study)
    if arguments.out is not None:
        study = study.model_copy(update={"output_dir": arguments.out})
    if arguments.list:
        stages.write_spec(study)
        print("\n".join(stages.list_commands(study)))
        return 0
    try:
        folder = stages.run(study, jobs=arguments.jobs, only=arguments.only)
    except (Interrupted, stages.Paused) as reason:
        print(f"care-jax: {reason}: run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except stages.Failed as error:
        print(f"care-jax: {error}", file=sys.stderr)
        return FAILED
    if arguments.only is None:
        print((folder / "report.md").read_text(encoding="utf-8"), end="")
    return 0
