"""The command `care-jax report`: tables, intervals, plots and an HTML page that compare systems."""

import argparse
import json
import pathlib
import sys

from care_jax.cli.command import Subparsers, command
from care_jax.errors import UserError


def add(commands: Subparsers) -> None:
    """Adds the command."""
    summary = "compare systems: tables, intervals, plots and an HTML page"
    option = command(commands, "report", _report, summary).add_argument
    option("paths", metavar="DIR", nargs="+", help="folders or files of judged or scored answers")
    option("--base", metavar="NAME", help="the system with which the others are compared")
    option("--out", metavar="DIR", default="report", help="output folder (default: report)")
    option("--json", action="store_true", help="print every cell as one JSON object")


def _report(arguments: argparse.Namespace) -> int:
    from care_jax.evaluation.report import files, records, tables

    out = pathlib.Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, expected a folder")
    loaded = records.load_records(arguments.paths)
    report = tables.make_report(loaded, arguments.base)
    written = files.write_report(report, loaded, out)
    if arguments.json:
        print(json.dumps(files.as_json(report), ensure_ascii=False))
    else:
        print(files.markdown(report), end="")
    print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    return 0
