"""`care-jax data`: what is in a dataset, and what is made of it."""

import argparse
import json
import sys

from care_jax.cli.command import MISTAKE, command


def add(commands) -> None:
    """Adds the commands to the parser."""
    data = command(commands, "data", _data, "look at a dataset")
    of_data = data.add_subparsers(metavar="COMMAND", dest="data_command")
    inspect = command(of_data, "inspect", _inspect, "what is in a dataset, what was dropped and why")
    inspect.add_argument("data", metavar="D", help="a file, a folder, a hub id, or `sample`")
    inspect.add_argument("--reader", default="care", metavar="R", help="how to read it (default: care)")
    inspect.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _data(arguments: argparse.Namespace) -> int:
    arguments.parser.print_help(sys.stderr)
    return MISTAKE


def _inspect(arguments: argparse.Namespace) -> int:
    from care_jax.data.readers import read

    reading = read(arguments.reader, arguments.data)
    account = reading.report.to_json()
    if arguments.json:
        print(json.dumps(account, ensure_ascii=False))
        return 0
    print(f"{account['rows']} rows, {account['questions']} questions, {account['responses']} responses")
    counts = {"dropped": {reason: count for reason, count in account["dropped"].items() if count}}
    counts |= {"ratings": account["ratings"]} | account["by"] | {"pairs (gap 1)": account["pairs"]}
    for title, numbers in counts.items():
        shown = ", ".join(f"{name} {count}" for name, count in numbers.items())
        print(f"{title:<14} {shown or 'none'}")
    for entry in reading.report.rejected[:10]:
        row = f"{entry['file']}, row {entry['row']}, {entry['field']}"
        print(f"  {row}: {entry['reason']}: {str(entry['found'])[:80]}")
    if len(reading.report.rejected) > 10:
        print(f"  ... and {len(reading.report.rejected) - 10} more")
    return 0
