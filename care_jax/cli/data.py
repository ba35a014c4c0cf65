"""`care-jax data`: what is in a dataset, and what is made of it."""

import argparse
import datetime
import json
import pathlib
import sys
from typing import Any

from care_jax.cli.command import PICTURE_SUFFIXES, command
from care_jax.errors import LEAKAGE, MISTAKE, UserError

_DATA = "a file, a folder, a hub id, or `sample`"


def add(commands) -> None:
    """Adds the commands to the parser."""
    data = command(commands, "data", _data, "look into datasets; sheets for raters, splits, token caches")
    own = data.add_subparsers(metavar="COMMAND", dest="data_command")

    command(own, "list", _list, "the readers, and every dataset with its status, licence and fields")

    inspect = command(own, "inspect", _inspect, "what is in a dataset, what was dropped and why")
    _source(inspect)
    inspect.add_argument("--json", action="store_true", help="one JSON object on stdout")
    inspect.add_argument("--plot", metavar="FILE", help="draw ratings and responses a question (PNG, PDF, SVG)")

    check = command(own, "check", _check, "whether questions stand in an evaluation set; exit status 3 if they do")
    _source(check, "TRAIN")
    check.add_argument("--against", metavar="EVAL", required=True, help="the evaluation set")
    _options(check, "EVAL", "--against-")
    check.add_argument("--json", action="store_true", help="one JSON object on stdout, every overlap in it")

    cache = command(own, "prepare", _prepare, "tokenize once for many runs: a token cache, read by `reader: prepared`")
    _source(cache)
    cache.add_argument("--model", required=True, metavar="M", help="whose tokenizer: a folder, a hub id, or `sample`")
    cache.add_argument("--model-revision", metavar="REV", help="of a hub id")
    cache.add_argument("--chat-template", default="model", metavar="T", help="model (default), none, or a jinja file")
    cache.add_argument("--date", metavar="YYYY-MM-DD", help="for a template that asks for it (default: today)")
    cache.add_argument("--query-language", default="native", metavar="L", help="native (default) or english")
    cache.add_argument("--translations", metavar="F", help="question, culture, translated_question, for english")
    cache.add_argument("--out", required=True, metavar="DIR", help="a folder of its own")

    split = command(own, "split", _split, "hold questions of every culture and category out: train.jsonl, eval.jsonl")
    split.add_argument("data", metavar="D", help="rows with question, associated_culture, cul_type")
    split.add_argument("--per-category", type=_count, required=True, metavar="N", help="questions held out of each")
    split.add_argument("--seed", type=int, default=0, metavar="N")
    _out(split)

    sheet = command(own, "sheet", _sheet, "answers of several systems as blind sheets for raters, and their key")
    sheet.add_argument("data", metavar="QUESTIONS", help="rows with question")
    sheet.add_argument(
        "--responses", nargs="+", required=True, metavar="F", help="rows with question, response, system"
    )
    sheet.add_argument("--raters", type=_count, default=1, metavar="N", help="sheets to write (default: 1)")
    sheet.add_argument("--per-question", type=_count, metavar="N", help="at most so many answers to a question")
    sheet.add_argument("--seed", type=int, default=0, metavar="N")
    _out(sheet)

    back = command(own, "import-annotations", _import, "filled sheets as rated rows, with the raters' agreement")
    back.add_argument("sheets", metavar="SHEET", nargs="+", help="filled sheets, one a rater")
    back.add_argument("--key", required=True, metavar="F", help="the key.jsonl that was written with them")
    back.add_argument("--out", required=True, metavar="F", help="rows in CARE's schema, JSON lines")
    back.add_argument("--json", action="store_true", help="the agreement as one JSON object on stdout")


def _source(one: argparse.ArgumentParser, metavar: str = "D") -> None:
    one.add_argument("data", metavar=metavar, help=_DATA)
    _options(one, metavar)


def _options(one: argparse.ArgumentParser, what: str, before: str = "--") -> None:
    one.add_argument(f"{before}reader", default="care", metavar="R", help=f"how to read {what} (default: care)")
    one.add_argument(f"{before}split", metavar="S", help="of a hub dataset or a folder")
    one.add_argument(f"{before}name", metavar="N", help="the configuration of a hub dataset")
    one.add_argument(f"{before}revision", metavar="REV", help="of a hub dataset")
    one.add_argument(
        f"{before}columns", nargs="+", default=[], metavar="FIELD=COLUMN", help="what one's own columns are called"
    )


def _out(one: argparse.ArgumentParser) -> None:
    one.add_argument("--out", default=".", metavar="DIR", help="the folder to write into (default: this one)")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_count.__name__ = "number above 0"  # what argparse calls it when it is none


def _reading(arguments: argparse.Namespace, path: str, before: str = "", **more: Any) -> Any:
    """The reading of a source as the arguments say, those whose names begin with `before`."""
    from care_jax.data import readers

    def given(name: str) -> Any:
        return getattr(arguments, before + name)

    columns: dict[str, str | None] = {}
    for pair in given("columns"):
        field, equals, column = pair.partition("=")
        if not equals:
            option = f"--{before}columns".replace("_", "-")
            raise UserError(f"{option}: expected FIELD=COLUMN, found {pair!r}")
        columns[field] = None if column in ("", "null") else column
    options = {name: given(name) for name in ("split", "name", "revision")}
    return readers.read(given("reader"), path, columns=columns or None, **options, **more)


def _data(arguments: argparse.Namespace) -> int:
    arguments.parser.print_help(sys.stderr)
    return MISTAKE


def _list(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation.catalogue import list_text

    sys.stdout.write(list_text())
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation import inspect as inspection

    if arguments.plot and pathlib.Path(arguments.plot).suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"--plot: found {arguments.plot!r}, expected a file ending in {', '.join(PICTURE_SUFFIXES)}")
    report = _reading(arguments, arguments.data).report
    if arguments.plot:
        try:
            inspection.inspect_picture([report], arguments.plot)
        except OSError as error:
            raise UserError(f"--plot: cannot write {arguments.plot!r}: {error.strerror}") from None
    if arguments.json:
        print(json.dumps(inspection.inspect([report]), ensure_ascii=False))
        return 0
    sys.stdout.write(inspection.inspect_text([report]))
    for entry in report.rejected[:10]:
        row = f"{entry['file']}, row {entry['row']}, {entry['field']}"
        print(f"  {row}: {entry['reason']}: {str(entry['found'])[:80]}")
    if len(report.rejected) > 10:
        print(f"  ... and {len(report.rejected) - 10} more")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation import leakage

    train = _reading(arguments, arguments.data).questions
    against = _reading(arguments, arguments.against, "against_").questions
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
    options = {name: getattr(arguments, name) for name in ("query_language", "translations")}
    reading = _reading(arguments, arguments.data, **options)
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


def _split(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation import sheets

    folder = pathlib.Path(arguments.out)
    parts = dict(zip(("train", "eval"), sheets.split(arguments.data, arguments.per_category, arguments.seed)))
    for name, rows in parts.items():
        path = folder / f"{name}.jsonl"
        if path.resolve() == pathlib.Path(arguments.data).resolve():
            raise UserError(f"{path} is the file to split: choose another folder by --out")
        _write(path, rows)
        print(f"{path}: {len(rows)} rows")
    return 0


def _sheet(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation import sheets

    folder = pathlib.Path(arguments.out)
    for there in sorted(folder.glob("sheet-*.csv")):
        raise UserError(f"{there} is a sheet already, perhaps a filled one: choose another folder by --out")
    count = sheets.write_sheets(
        arguments.data, arguments.responses, str(folder), arguments.raters, arguments.seed, arguments.per_question
    )
    for rater in range(1, arguments.raters + 1):
        print(f"{folder / f'sheet-{rater}.csv'}: {count} answers to rate")
    print(f"{folder / 'key.jsonl'}: whose they are; not for the raters")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from care_jax.data.curation import sheets

    rows, agreement = sheets.import_sheets(arguments.sheets, arguments.key)
    if not rows:
        raise UserError(f"{', '.join(arguments.sheets)}: no item is rated")
    _write(pathlib.Path(arguments.out), rows)
    if arguments.json:
        items = {
            item: {"raters": raters, "mean": mean, "range": spread}
            for item, (raters, mean, spread) in agreement.items.items()
        }
        print(json.dumps({"alpha": agreement.alpha, "unrated": agreement.unrated, "items": items}))
        return 0
    print(f"{arguments.out}: {len(rows)} rated rows; {agreement.unrated} items unrated")
    shared = {item: about for item, about in agreement.items.items() if about[0] > 1}
    alpha = "not defined (it needs two raters and two ratings)" if agreement.alpha is None else f"{agreement.alpha:.3f}"
    print(f"Krippendorff's alpha (ordinal): {alpha}, over {len(shared)} items of two raters or more")
    texts = {row["item"]: row["response"] for row in rows}
    for item, (raters, mean, spread) in sorted(shared.items(), key=lambda one: -one[1][2])[:10]:
        if spread:
            print(f"  {item}: {raters} raters, mean {mean:.1f}, range {spread:g}: {' '.join(texts[item].split())[:60]}")
    return 0


def _write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    from care_jax.textfiles import write_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise UserError(f"--out: cannot write {path}: {error.strerror}") from None
