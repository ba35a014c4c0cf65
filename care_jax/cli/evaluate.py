"""The options of `care-jax evaluate`, `judge` and `report`: answers and their scores, ratings, tables over systems."""

import argparse
import json
import pathlib
import sys
import typing

from care_jax.cli.command import Subparsers, add_endpoint_options, command, require_at_least
from care_jax.errors import UserError
from care_jax.evaluation.items import Method, Mode, QueryLanguage

_EVALUATE = """\
Answers come from a model on this machine (--model), an OpenAI-compatible endpoint (--base-url), or a file (--responses:
JSON lines with id or question, and response, or logps of the options). The key of an endpoint is read from
OPENAI_API_KEY. Scores of care_eval and llm_globe need a judge: care-jax judge.
"""
_JUDGE = """\
The judge is an endpoint (--judge-model J --base-url U), a checkpoint on this machine (--judge-model FOLDER), or anyone
who answers a file of requests in OpenAI's batch format (--requests-out F, then --answers-in F). The same command again
asks only for ratings that are missing. If the answers have human_rating, the judge's agreement with it is printed.
"""


def add(commands: Subparsers) -> None:
    """Adds the commands."""
    _add_evaluate(commands)
    _add_judge(commands)
    _add_report(commands)


def _add_evaluate(commands: Subparsers) -> None:
    evaluate = command(commands, "evaluate", _evaluate, "answers to the tasks' questions, and their scores", _EVALUATE)
    option = evaluate.add_argument
    option("--task", "--tasks", metavar="T[,T]", help="tasks; --list prints them")
    option("--list", action="store_true", help="print the tasks and exit")
    option("--model", metavar="M", help="a folder, hub id, run directory, `sample`, or a name at --base-url")
    option("--base-url", metavar="U", help="an OpenAI-compatible endpoint, such as vLLM's")
    option("--responses", metavar="F", help="a file of existing answers")
    option("--data", metavar="D", help="the task's file or folder (default: its hub dataset)")
    option("--limit", type=int, metavar="N", help="only the first N items")
    option("--out", "--output_path", metavar="DIR", help="output folder (default: evaluation/SYSTEM)")
    option("--json", action="store_true", help="print one JSON object per task")
    option(
        "--mode", choices=typing.get_args(Mode), default="parity",
        help="parity: what the published script computes; strict: what it was meant to compute (default: parity)",
    )  # fmt: skip
    option(
        "--method", choices=typing.get_args(Method), default="auto",
        help="choose options by log-probability of their letters, or in words (default: what the task's authors do)",
    )  # fmt: skip
    option("--language", metavar="L", help="only items of this language or country")
    option(
        "--query-language", choices=typing.get_args(QueryLanguage), default="native", help="language of the questions"
    )
    option("--translations", metavar="F", help="English questions: question, culture, translated_question")
    option("--prompt", metavar="ID", help="which of the task's prompts (blend_sa: inst-4, pers-3, ...)")
    option(
        "--num-fewshot", "--num_fewshot", type=int, default=0, metavar="N",
        help="solved questions before each question, of its language and domain or subject (default: 0)",
    )  # fmt: skip
    option("--fewshot", metavar="D", help="file of the solved questions: a validation or dev split")
    option("--columns", metavar="MAP", help="field=column,... for a table with other column names")
    add_endpoint_options(evaluate)
    option("--temperature", type=float, metavar="T", help="0 is greedy (default: the task's)")
    option("--top-p", type=float, default=1.0, metavar="P")
    option("--max-tokens", type=int, metavar="N", help="tokens per answer (default: the task's)")
    option("--n", type=int, default=1, metavar="N", help="answers per question (default: 1)")
    option("--seed", type=int, default=0, metavar="N")
    option("--batch-size", "--batch_size", type=int, default=16, metavar="N")
    option("--dtype", choices=("float32", "bfloat16"), default="float32")
    option(
        "--chat-template", metavar="T",
        help="model, none, or a jinja file (default: model for words, none for log-probabilities)",
    )  # fmt: skip
    option("--template-date", metavar="DATE", help="YYYY-MM-DD, for a template that asks for today's")


def _add_judge(commands: Subparsers) -> None:
    judge = command(commands, "judge", _judge, "ratings of answers by a judge", _JUDGE)
    option = judge.add_argument
    option("--responses", metavar="F", required=True, help="lines of answers with question, reference, category")
    option("--out", metavar="F", help="output: these lines with rating, judgement, judge")
    option("--judge-model", metavar="J", help="a model's name at --base-url, or a local checkpoint")
    option("--base-url", metavar="U", help="an OpenAI-compatible endpoint")
    option("--requests-out", metavar="F", help="write the requests as a batch file and stop")
    option("--answers-in", metavar="F", nargs="+", help="outputs of a batch; later files override earlier ones")
    option("--dry-run", action="store_true", help="only count the calls")
    option("--rubrics", metavar="DIR", help="folder of the published prompt files (default: care_jax's wording)")
    option(
        "--criteria", choices=("by_content", "as_published"), default="by_content",
        help="which text a category gets; the names of two published files are swapped (default: by_content)",
    )  # fmt: skip
    option("--rubric", metavar="NAME", help="the rubric of all rows, such as care_pro or globe")
    option("--second", metavar="F", help="the output of another judge; prints the agreement with it")
    option("--tries", type=int, default=3, metavar="N", help="attempts per answer until there is a rating (default: 3)")
    option("--temperature", type=float, default=0.0, metavar="T")
    option("--max-tokens", type=int, default=1024, metavar="N")
    option("--limit", type=int, metavar="N", help="only the first N rows")
    option("--cache", metavar="F", help="file of replies by request (default: OUT.cache.jsonl)")
    option("--dtype", choices=("float32", "bfloat16"), default="float32")
    option("--json", action="store_true", help="print the summary as one JSON object")
    add_endpoint_options(judge)


def _add_report(commands: Subparsers) -> None:
    summary = "tables, plots and an HTML page over any number of systems"
    option = command(commands, "report", _report, summary).add_argument
    option("folders", metavar="DIR", nargs="+", help="folders or files of judged or scored answers")
    option("--base", metavar="NAME", help="the system with which the others are compared")
    option("--out", metavar="DIR", default="report", help="default: report")
    option("--json", action="store_true", help="print every cell as one JSON object")


def _evaluate(arguments: argparse.Namespace) -> int:
    from care_jax.cli import evaluating

    return evaluating.evaluate(arguments)


def _judge(arguments: argparse.Namespace) -> int:
    from care_jax.cli import judging
    from care_jax.stopping import interruptible

    require_at_least(("--tries", arguments.tries, 1), ("--max-tokens", arguments.max_tokens, 1))
    require_at_least(("--temperature", arguments.temperature, 0), ("--limit", arguments.limit, 1))
    with interruptible() as status:
        return judging.judge(arguments)
    return status.value


def _report(arguments: argparse.Namespace) -> int:
    from care_jax.evaluation.report import files, records, tables

    out = pathlib.Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, expected a folder")
    loaded = records.load_records(arguments.folders)
    report = tables.make_report(loaded, arguments.base)
    written = files.write_report(report, loaded, out)
    if arguments.json:
        print(json.dumps(files.as_json(report), ensure_ascii=False))
    else:
        print(files.markdown(report), end="")
    print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    return 0
