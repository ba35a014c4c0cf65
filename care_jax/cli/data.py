"""`care-jax data`: looks into datasets, and makes splits, sheets for raters and token caches of them."""

import argparse
import contextlib
import datetime
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from care_jax.cli.command import Subparsers, check_minimum, check_picture, command
from care_jax.data.curation import leakage
from care_jax.errors import LEAKAGE, MISTAKE, UserError
from care_jax.textfiles import write_lines, writing

if TYPE_CHECKING:  # importing it takes the time that only some commands need
    from care_jax.data.readers import Reading

_DATA = "a file, a folder, a hub id, or `sample`"


def add(commands: Subparsers) -> None:
    """Adds the commands to the parser."""
    data = command(commands, "data", _data, "inspect, check, split and tokenize datasets; sheets for raters")
    subcommands = data.add_subparsers(metavar="COMMAND", dest="data_command")

    command(subcommands, "list", _list, "list the readers, and the datasets with status, licence and fields")

    inspect = command(subcommands, "inspect", _inspect, "show what is in a dataset, what was dropped and why")
    _add_source(inspect)
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.add_argument("--plot", metavar="FILE", help="draw ratings and responses per question (PNG, PDF, SVG)")

    check = command(subcommands, "check", _check, "find training questions in an evaluation set (then exit status 3)")
    _add_source(check, "TRAIN")
    check.add_argument("--against", metavar="EVAL", required=True, help="the evaluation set")
    _add_reader_options(check, "EVAL", "--against-")
    check.add_argument("--json", action="store_true", help="print one JSON object, with every overlap")

    _add_prepare(subcommands)

    tfds = command(subcommands, "tfds", _tfds, "write CARE's rows as the TFDS dataset `care`, read by `reader: tfds`")
    tfds.add_argument("data", metavar="D", help=f"CARE's rows: {_DATA}")
    tfds.add_argument("--configs", nargs="+", metavar="C", help="all, arab, chinese, japanese (default: all with rows)")
    _add_out(tfds)

    split = command(subcommands, "split", _split, "hold out questions of every category: train.jsonl, eval.jsonl")
    split.add_argument("data", metavar="D", help="rows with question, associated_culture, cul_type")
    split.add_argument("--per-category", type=int, required=True, metavar="N", help="questions held out of each")
    split.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    _add_out(split)

    _add_sheet(subcommands)

    summary = "turn filled sheets into rated rows, and show the raters' agreement"
    back = command(subcommands, "import-annotations", _import_annotations, summary)
    back.add_argument("sheets", metavar="SHEET", nargs="+", help="filled sheets, one per rater")
    back.add_argument("--key", required=True, metavar="F", help="the key.jsonl that was written with the sheets")
    back.add_argument("--out", required=True, metavar="F", help="rows in CARE's schema, JSON lines")
    back.add_argument("--json", action="store_true", help="print the agreement as one JSON object")


def _add_prepare(subcommands: Subparsers) -> None:
    summary = "tokenize once for many runs: a token cache, read by `reader: prepared`"
    prepare = command(subcommands, "prepare", _prepare, summary)
    _add_source(prepare)
    model = "the model of the tokenizer: a folder, a hub id, or `sample`"
    prepare.add_argument("--model", required=True, metavar="M", help=model)
    prepare.add_argument("--model-revision", metavar="REV", help="revision of the model, if it is a hub id")
    prepare.add_argument("--chat-template", default="model", metavar="T", help="model (default), none, or a jinja file")
    prepare.add_argument("--date", metavar="YYYY-MM-DD", help="for a template that needs a date (default: today)")
    prepare.add_argument("--query-language", default="native", metavar="L", help="native (default) or english")
    prepare.add_argument("--translations", metavar="F", help="question, culture, translated_question, for english")
    prepare.add_argument("--out", required=True, metavar="DIR", help="an empty folder for the cache")


def _add_sheet(subcommands: Subparsers) -> None:
    sheet = command(subcommands, "sheet", _sheet, "write responses of several systems as blind sheets, and their key")
    sheet.add_argument("data", metavar="QUESTIONS", help="rows with question")
    sheet.add_argument("--responses", nargs="+", required=True, metavar="F", help="rows of question, response, system")
    sheet.add_argument("--raters", type=int, default=1, metavar="N", help="sheets to write (default: 1)")
    sheet.add_argument("--per-question", type=int, metavar="N", help="responses per question, at most")
    sheet.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    _add_out(sheet)


def _add_source(parser: argparse.ArgumentParser, metavar: str = "D") -> None:
    parser.add_argument("data", metavar=metavar, help=_DATA)
    _add_reader_options(parser, metavar)


def _add_reader_options(parser: argparse.ArgumentParser, source: str, prefix: str = "--") -> None:
    parser.add_argument(f"{prefix}reader", default="care", metavar="R", help=f"how to read {source} (default: care)")
    parser.add_argument(f"{prefix}split", metavar="S", help="the split of a hub dataset or a folder")
    parser.add_argument(f"{prefix}name", metavar="N", help="the configuration of a hub dataset")
    parser.add_argument(f"{prefix}revision", metavar="REV", help="of a hub dataset")
    columns = "the names of the data's columns"
    parser.add_argument(f"{prefix}columns", nargs="+", default=[], metavar="FIELD=COLUMN", help=columns)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default=".", metavar="DIR", help="the folder to write into (default: this one)")


def _read(arguments: argparse.Namespace, path: str, prefix: str = "") -> "Reading":
    """Reads a source with the options whose names begin with `prefix`."""
    from care_jax.data import readers

    options = {option: getattr(arguments, prefix + option) for option in ("reader", "split", "name", "revision")}
    options |= {
        option: getattr(arguments, option) for option in ("query_language", "translations") if option in arguments
    }
    columns = _column_map(getattr(arguments, f"{prefix}columns"), f"--{prefix}columns".replace("_", "-"))
    return readers.read(path=path, columns=columns, **options)


def _column_map(pairs: Sequence[str], option: str) -> dict[str, str | None] | None:
    columns: dict[str, str | None] = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not equals:
            raise UserError(f"{option}: expected FIELD=COLUMN, found {pair!r}")
        columns[field] = None if column in ("", "null") else column
    return columns or None


def _data(arguments: argparse.Namespace) -> int:
    arguments.parser.print_help(sys.stderr)
    return MISTAKE


def _list(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation.catalogue import list_text

    sys.stdout.write(list_text())
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation.inspect import inspect, inspect_picture, inspect_text

    check_picture(arguments.plot)
    report = _read(arguments, arguments.data).report
    if arguments.plot:
        with writing("--plot", arguments.plot):
            inspect_picture(report, arguments.plot)
    if arguments.json:
        print(json.dumps(inspect(report), ensure_ascii=False))
        return 0
    sys.stdout.write(inspect_text(report))
    for entry in report.rejected[:10]:
        place = f"{entry['file']}, row {entry['row']}, {entry['field']}"
        print(f"  {place}: {entry['reason']}: {str(entry['found'])[:80]}")
    if len(report.rejected) > 10:
        print(f"  ... and {len(report.rejected) - 10} more")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    train = _read(arguments, arguments.data).questions
    against = _read(arguments, arguments.against, "against_").questions
    overlaps = leakage.check(train, against)
    if arguments.json:
        print(json.dumps(leakage.check_json(overlaps), ensure_ascii=False))
    else:
        sys.stdout.write(leakage.check_text(overlaps))
    return LEAKAGE if overlaps else 0


def _prepare(arguments: argparse.Namespace) -> int:
    from care_jax.data import chat
    from care_jax.data.readers import token_cache

    folder = pathlib.Path(arguments.out)
    tokenizer = chat.load_tokenizer(arguments.model, arguments.model_revision)
    reading = _read(arguments, arguments.data)
    keys = ("data", "reader", "split", "name", "revision", "query_language", "translations")
    preparation = token_cache.Preparation(
        model=arguments.model,
        source={name: getattr(arguments, name) for name in keys} | {"sha256": dict(reading.files)},
        template=arguments.chat_template,
        date=arguments.date or datetime.date.today().isoformat(),
    )
    about = token_cache.write(folder, reading.questions, reading.report, tokenizer, preparation)
    print(f"{folder}: {about['questions']} questions, {about['responses']} responses, {about['tokens']} tokens")
    return 0


def _tfds(arguments: argparse.Namespace) -> int:
    from care_jax.data import care_tfds

    with writing("--out", arguments.out), contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress
        questions = care_tfds.prepare(arguments.data, arguments.out, arguments.configs)
    for config, count in questions.items():
        print(f"care/{config} in {arguments.out}: {count} questions")
    return 0


def _split(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation import sheets

    check_minimum(("--per-category", arguments.per_category, 1))
    folder = pathlib.Path(arguments.out)
    parts = dict(zip(("train", "eval"), sheets.split(arguments.data, arguments.per_category, arguments.seed)))
    for name, rows in parts.items():
        path = folder / f"{name}.jsonl"
        if path.resolve() == pathlib.Path(arguments.data).resolve():
            raise UserError(f"{path} is the file to split: choose another folder with --out")
        with writing("--out", path):
            write_lines(path, rows)
        print(f"{path}: {len(rows)} rows")
    return 0


def _sheet(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation import sheets

    check_minimum(("--raters", arguments.raters, 1), ("--per-question", arguments.per_question, 1))
    folder = pathlib.Path(arguments.out)
    for earlier in sorted(folder.glob("sheet-*.csv")):
        raise UserError(f"{earlier} is a sheet already, maybe a filled one: choose another folder with --out")
    with writing("--out", folder):
        options = arguments.raters, arguments.seed, arguments.per_question
        count = sheets.write_sheets(arguments.data, arguments.responses, str(folder), *options)
    for rater in range(1, arguments.raters + 1):
        print(f"{folder / f'sheet-{rater}.csv'}: {count} responses to rate")
    print(f"{folder / 'key.jsonl'}: the system of each response; not for the raters")
    return 0


def _import_annotations(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation import sheets

    rows, agreement = sheets.import_sheets(arguments.sheets, arguments.key)
    if not rows:
        raise UserError(f"{', '.join(arguments.sheets)}: no item is rated")
    with writing("--out", arguments.out):
        write_lines(pathlib.Path(arguments.out), rows)
    if arguments.json:
        items = {item: dict(zip(("raters", "mean", "range"), summary)) for item, summary in agreement.items.items()}
        print(json.dumps({"alpha": agreement.alpha, "unrated": agreement.unrated, "items": items}))
        return 0
    print(f"{arguments.out}: {len(rows)} rated rows; {agreement.unrated} items unrated")
    shared = {item: summary for item, summary in agreement.items.items() if summary[0] > 1}
    alpha = "not defined (it needs two raters and two ratings)" if agreement.alpha is None else f"{agreement.alpha:.3f}"
    print(f"Krippendorff's alpha (ordinal): {alpha}, over {len(shared)} items with two raters or more")
    texts = {row["item"]: row["response"] for row in rows}
    for item, (raters, mean, spread) in sorted(shared.items(), key=lambda pair: -pair[1][2])[:10]:
        if spread:
            print(f"  {item}: {raters} raters, mean {mean:.1f}, range {spread:g}: {' '.join(texts[item].split())[:60]}")
    return 0
