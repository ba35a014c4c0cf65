"""`care-jax evaluate`, `judge` and `report`: what a model answers, how good that is, and the tables of it."""

import argparse
import json
import pathlib
import sys
from typing import Any

from care_jax.cli.command import add_endpoint_options, command, require_at_least
from care_jax.errors import UserError

_EVALUATE = """\
Answers come from a model on this machine (--model), an OpenAI-compatible endpoint (--base-url), or a file of anyone's
(--responses: JSON lines with id or question, and response; or logps of the options). An endpoint's key is taken from
OPENAI_API_KEY. Scores of care_eval and llm_globe need a judge: care-jax judge.
"""
_JUDGE = """\
The judge is an endpoint (--judge-model J --base-url U), a checkpoint here (--judge-model FOLDER), or whoever answers a
file of requests in OpenAI's batch format (--requests-out F, then --answers-in F). Run again, it asks only for what is
not yet there. Where the answers hold human_rating, the judge's agreement with people is printed.
"""


def add(commands) -> None:
    """Adds the commands to the parser."""
    evaluate = command(commands, "evaluate", _evaluate, "answers to a task's questions, and their scores", _EVALUATE)
    evaluate.add_argument("--task", "--tasks", metavar="T[,T]", help="the tasks, see --list")
    evaluate.add_argument("--list", action="store_true", help="print the tasks and exit")
    evaluate.add_argument("--model", metavar="M", help="a folder, a hub id, a run directory, `sample`; of --base-url's")
    evaluate.add_argument("--base-url", metavar="U", help="an OpenAI-compatible endpoint, such as vLLM's")
    evaluate.add_argument("--responses", metavar="F", help="a file of answers")
    evaluate.add_argument("--data", metavar="D", help="the task's file or folder (default: its hub dataset)")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N items")
    evaluate.add_argument("--out", "--output_path", metavar="DIR", help="where to (default: evaluation/SYSTEM)")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object a task")
    evaluate.add_argument(
        "--mode", choices=("parity", "strict"), default="parity",
        help="as the published script computes, quirks too, or what it meant (default: parity)",
    )  # fmt: skip
    evaluate.add_argument(
        "--method", choices=("auto", "logprob", "generate"), default="auto",
        help="options by log-probability of their letters, or in words (default: as the task's authors do)",
    )  # fmt: skip
    evaluate.add_argument("--language", metavar="L", help="only items of this language or country")
    evaluate.add_argument("--query-language", choices=("native", "english"), default="native")
    evaluate.add_argument(
        "--translations", metavar="F", help="English questions: question, culture, translated_question"
    )
    evaluate.add_argument("--prompt", metavar="ID", help="which of the task's prompts (blend_sa: inst-4, pers-3, ...)")
    evaluate.add_argument(
        "--num-fewshot", "--num_fewshot", type=int, default=0, metavar="N",
        help="questions with their answers before each question, of its language and domain or subject (default: 0)",
    )  # fmt: skip
    evaluate.add_argument("--fewshot", metavar="D", help="where these come from: a validation or dev split's file")
    evaluate.add_argument("--columns", metavar="MAP", help="field=column,... for a table of one's own")
    add_endpoint_options(evaluate)
    evaluate.add_argument("--temperature", type=float, metavar="T", help="default: the task's")
    evaluate.add_argument("--top-p", type=float, default=1.0, metavar="P")
    evaluate.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (default: the task's)")
    evaluate.add_argument("--n", type=int, default=1, metavar="N", help="answers to each question (default: 1)")
    evaluate.add_argument("--seed", type=int, default=0, metavar="N")
    evaluate.add_argument("--batch-size", "--batch_size", type=int, default=16, metavar="N")
    evaluate.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    evaluate.add_argument(
        "--chat-template", metavar="T",
        help="model, none, or a jinja file (default: model for words, none for log-probabilities)",
    )  # fmt: skip
    evaluate.add_argument("--template-date", metavar="DATE", help="YYYY-MM-DD, for a template that asks for today's")

    judge = command(commands, "judge", _judge, "ratings of answers by a judge", _JUDGE)
    judge.add_argument("--responses", metavar="F", required=True, help="answers with question, reference, category")
    judge.add_argument("--out", metavar="F", help="the answers' lines with rating, judgement, judge")
    judge.add_argument("--judge-model", metavar="J", help="a model's name at --base-url, or a checkpoint here")
    judge.add_argument("--base-url", metavar="U", help="an OpenAI-compatible endpoint")
    judge.add_argument("--requests-out", metavar="F", help="write the requests as a batch file, judge nothing")
    judge.add_argument("--answers-in", metavar="F", nargs="+", help="a batch's output, later files win")
    judge.add_argument("--dry-run", action="store_true", help="count the calls, make none")
    judge.add_argument("--rubrics", metavar="DIR", help="the published prompt files, instead of our own wording")
    judge.add_argument(
        "--criteria", choices=("by_content", "as_published"), default="by_content",
        help="which text a category gets: two published file names are swapped (default: by_content)",
    )  # fmt: skip
    judge.add_argument("--rubric", metavar="NAME", help="one rubric for all rows, such as care_pro or globe")
    judge.add_argument("--second", metavar="F", help="another judge's output: print the agreement with it")
    judge.add_argument("--tries", type=int, default=3, metavar="N", help="judgements without a rating (default: 3)")
    judge.add_argument("--temperature", type=float, default=0.0, metavar="T")
    judge.add_argument("--max-tokens", type=int, default=1024, metavar="N")
    judge.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    judge.add_argument("--cache", metavar="F", help="answers by content (default: OUT.cache.jsonl)")
    judge.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    judge.add_argument("--json", action="store_true", help="print the account as one JSON object")
    add_endpoint_options(judge)

    tables = command(commands, "report", _report, "tables, plots and a page to browse, over any number of systems")
    tables.add_argument("folders", metavar="DIR", nargs="+", help="folders or files of judged or scored answers")
    tables.add_argument("--base", metavar="NAME", help="the system that others are compared with")
    tables.add_argument("--out", metavar="DIR", default="report", help="default: report")
    tables.add_argument("--json", action="store_true", help="print every cell as one JSON object")


# --- evaluate --------------------------------------------------------------------------------------------------------


def _evaluate(arguments: argparse.Namespace) -> int:
    from care_jax.evaluation.items import Options
    from care_jax.evaluation.tasks import registry

    if arguments.list:
        _list_tasks()
        return 0
    if not arguments.task:
        raise UserError("--task: which one? care-jax evaluate --list prints them")
    if arguments.responses is not None and (arguments.model or arguments.base_url):
        raise UserError("--responses: the answers are there; leave --model and --base-url away")
    if not (arguments.responses or arguments.model or arguments.base_url):
        raise UserError("expected one of --model, --base-url, --responses: where do the answers come from?")
    require_at_least(
        ("--limit", arguments.limit, 1), ("--n", arguments.n, 1), ("--max-tokens", arguments.max_tokens, 1)
    )
    require_at_least(("--temperature", arguments.temperature, 0), ("--batch-size", arguments.batch_size, 1))
    require_at_least(("--num-fewshot", arguments.num_fewshot, 0))
    if arguments.fewshot is not None and not arguments.num_fewshot:
        raise UserError("--fewshot: how many examples of it? --num-fewshot N")
    options = Options(
        mode=arguments.mode, method=arguments.method, query_language=arguments.query_language,
        language=arguments.language, prompt=arguments.prompt, translations=arguments.translations,
        columns=_columns(arguments.columns), limit=arguments.limit, num_fewshot=arguments.num_fewshot,
        fewshot=arguments.fewshot,
    )  # fmt: skip
    names = [name for name in arguments.task.split(",") if name.strip()]
    found = [registry.find(name, options) for name in names]
    # What is wrong with any task's data is said before the first model is opened.
    taken = [registry.read(task, arguments.data, own) for task, own in found]
    from care_jax.cli.answerers import Answerer

    answerer = Answerer(arguments)
    for (task, own), items in zip(found, taken):
        result, status = answerer.run(task, items, own)
        if status:
            return status
        print(json.dumps(result, ensure_ascii=False) if arguments.json else _shown(result), flush=True)
    return 0


def _columns(given: str | None) -> dict[str, str] | None:
    if given is None:
        return None
    pairs = [part.partition("=") for part in given.split(",") if part.strip()]
    wrong = next((name for name, sign, column in pairs if not (name.strip() and sign and column.strip())), None)
    if wrong is not None:
        raise UserError(f"--columns: expected field=column,field=column, found {given!r}")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _list_tasks() -> None:
    from care_jax.evaluation.tasks.registry import TASKS

    for task in TASKS.values():
        source = f"; {task.source}, {task.licence}" if task.source else ""
        print(f"{task.name:20} {task.summary} ({task.metric}{source})")


def _shown(result: dict[str, Any]) -> str:
    score = "no score yet" if result["score"] is None else f"{result['score']:.4f}"
    low, high = result["interval"] or (None, None)
    around = "" if low is None else f" [{low:.4f}, {high:.4f}]"
    counts = ", ".join(f"{result[name]} {name}" for name in ("excluded", "missing", "failed"))
    lines = [f"{result['task']}: {result['metric']} {score}{around}; n {result['n']}, {counts}"]
    for dimension, values in result["by"].items():
        shown = ", ".join(f"{name} {value:.4f} ({result['by_n'][dimension][name]})" for name, value in values.items())
        lines.append(f"  by {dimension}: {shown}")
    lines += [f"  {name}: {value:.4f}" for name, value in result["scores"].items() if value is not None]
    return "\n".join(lines)


# --- judge -----------------------------------------------------------------------------------------------------------


def _judge(arguments: argparse.Namespace) -> int:
    from care_jax.cli import judging
    from care_jax.stopping import interruptible

    require_at_least(("--tries", arguments.tries, 1), ("--max-tokens", arguments.max_tokens, 1))
    require_at_least(("--temperature", arguments.temperature, 0), ("--limit", arguments.limit, 1))
    with interruptible() as status:
        return judging.judge(arguments)
    return status.value


# --- report ----------------------------------------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> int:
    from care_jax.evaluation.report import files, records, tables

    out = pathlib.Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, expected a folder")
    found = records.load_records(arguments.folders)
    made = tables.make_report(found, arguments.base)
    written = files.write_report(made, found, out)
    if arguments.json:
        print(json.dumps(files.as_json(made), ensure_ascii=False))
    else:
        print(files.markdown(made), end="")
    print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    return 0
