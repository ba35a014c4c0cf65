"""The tasks: what each reads, asks and counts. Scoring needs no model and imports no jax."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from care_jax.errors import UserError, nearest
from care_jax.evaluation.answers.responses import Answer, Matched, match
from care_jax.evaluation.items import Item, Options, Outcome, TaskItems
from care_jax.evaluation.language import detect
from care_jax.evaluation.statistics import interval
from care_jax.evaluation.tasks import blend, likelier, multiple_choice, rated

Kind = Literal["judged", "text", "choice", "logprob"]


@dataclass(frozen=True)
class Task:
    """kind: judged (a judge rates the answers), text (answers are compared), choice (options, by log-probability or in
    words), logprob (by log-probability only). max_tokens, temperature: as its authors ask. source: its hub id."""

    name: str
    kind: Kind
    summary: str
    source: str
    licence: str
    read: Callable[[str, Options], TaskItems]
    score: Callable[[TaskItems, Matched, Options], Outcome]
    metric: str
    max_tokens: int = 256
    temperature: float = 0.0
    generated: bool = False  # `auto` asks for words even where log-probabilities can be had
    fewshot: bool = False  # examples may stand before its questions


def _blend_choices(taken: TaskItems, matched: Matched, options: Options) -> Outcome:
    return multiple_choice.with_unit_macro(
        multiple_choice.score_choices(taken, matched, options, parse=blend.choice_of)
    )


def _blend_read(path: str, options: Options) -> TaskItems:
    taken = blend.read_choices(path, options)
    # Options are compared by their letters; their wordings serve the parser.
    items = [dataclasses.replace(item, choices=tuple(f" {letter}" for letter in item.letters)) for item in taken.items]
    return dataclasses.replace(taken, items=items)


def _culturalbench(taken: TaskItems, matched: Matched, options: Options) -> Outcome:
    hard = any(item.unit is not None for item in taken.items)
    return (multiple_choice.score_units if hard else multiple_choice.score_choices)(taken, matched, options)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("care_eval", "judged", "CARE's questions, answered freely, rated 1-10 by a judge", "geyang627/CARE-eval",
             "MIT", rated.read_care, rated.score_rated, "mean rating", 256, 0.7),
        Task("blend_sa", "text", "BLEnD's short answers, against those of a country's people", "nayeon212/BLEnD",
             "CC-BY-SA-4.0", blend.read_short, blend.score_short, "SEM-B(lite), 0-100", 512),
        Task("blend_mc", "choice", "BLEnD's multiple-choice questions (English)", "nayeon212/BLEnD",
             "CC-BY-SA-4.0", _blend_read, _blend_choices, "acc", 512, generated=True),
        Task("include", "choice", "INCLUDE's regional exam questions in 44 languages", "CohereLabs/include-base-44",
             "Apache-2.0", multiple_choice.read_include, multiple_choice.score_choices, "acc", 16, fewshot=True),
        Task("culturalbench", "choice", "CulturalBench, easy or hard by its columns; CulturalTeaming's rows too",
             "kellycyy/CulturalBench", "CC-BY-4.0", multiple_choice.read_culturalbench, _culturalbench, "acc", 16),
        Task("culturalbench_easy", "choice", "CulturalBench-Easy: one of four", "kellycyy/CulturalBench",
             "CC-BY-4.0", multiple_choice.read_mcq, multiple_choice.score_choices, "acc", 16, fewshot=True),
        Task("culturalbench_hard", "choice", "CulturalBench-Hard: four statements, all to be judged right",
             "kellycyy/CulturalBench", "CC-BY-4.0", multiple_choice.read_hard, multiple_choice.score_units, "acc", 16),
        Task("fork", "choice", "FORK: culinary commonsense, one of two", "shramay-palta/FORK_ACL2023",
             "CC-BY-4.0", multiple_choice.read_mcq, multiple_choice.score_choices, "acc", 16, fewshot=True),
        Task("geomlama", "choice", "GeoMLAMA: several right answers among the candidates", "WadeYin9712/GeoMLAMA",
             "not stated", multiple_choice.read_geomlama, multiple_choice.score_geomlama, "top-n overlap", 64),
        Task("llm_globe", "judged", "LLM-GLOBE's open questions, rated 1-7 by the rubric globe", "raginlee/LLM-GLOBE",
             "unverified", rated.read_globe, rated.score_rated, "mean rating, 1-7", 512, 0.7),
        Task("mcq", "choice", "any table of question, options and answer, by --columns (Global-MMLU and such)", "",
             "the data's", multiple_choice.read_mcq, multiple_choice.score_choices, "acc", 16, fewshot=True),
        Task("cloze", "logprob", "prompts with native and foreign names (CAMeL): which the model expects", "",
             "the data's", likelier.read_cloze, likelier.score_comparisons, "cultural bias score, 0-1"),
        Task("statement_pairs", "logprob", "stereotyped statements and their contrasts (SHADES): which is likelier",
             "", "the data's", likelier.read_pairs, likelier.score_pairs, "stereotype preferred, 0-1"),
    )
}  # fmt: skip
# lm-evaluation-harness's and other names of the same.
ALIASES = {
    "care": "care_eval", "care-eval": "care_eval", "blend": "blend_sa", "blend-sa": "blend_sa",
    "blend-mc": "blend_mc", "include_base_44": "include", "include_base": "include", "culturalteaming": "culturalbench",
    "llm-globe": "llm_globe", "camel": "cloze", "shades": "statement_pairs", "global_mmlu": "mcq",
    "statement-pairs": "statement_pairs",
}  # fmt: skip


def find(name: str, options: Options) -> tuple[Task, Options]:
    """The task of a name, and its options: `include_base_44_chinese` is include with the language Chinese."""
    wanted = name.strip().casefold()
    wanted = ALIASES.get(wanted, wanted)
    if wanted in TASKS:
        return TASKS[wanted], options
    for prefix, task in (("include_base_44_", "include"), ("include_", "include"), ("global_mmlu_", "mcq")):
        if wanted.startswith(prefix):
            language = options.language or wanted.removeprefix(prefix)
            return TASKS[task], dataclasses.replace(options, language=language)
    raise UserError(f"--task: found {name!r}{nearest(wanted, list(TASKS))}, expected one of {', '.join(TASKS)}")


def read(task: Task, path: str | None, options: Options) -> TaskItems:
    """The task's items; without a path those of its hub dataset. Ids are unique, or the file is refused."""
    if options.num_fewshot and not task.fewshot:
        able = ", ".join(one.name for one in TASKS.values() if one.fewshot)
        raise UserError(f"--num-fewshot: {task.name} takes no examples; {able} do")
    place = path or task.source
    if not place or (path is None and place.startswith(("shramay", "WadeYin", "raginlee"))):
        where = f" (its files: github.com/{task.source})" if task.source else ""
        raise UserError(f"--data: {task.name} needs its file{where}")
    taken = task.read(place, options)
    twice = [id_ for id_, count in Counter(item.id for item in taken.items).items() if count > 1]
    if twice:
        raise UserError(f"{place}: the id {twice[0]!r} stands for {len(twice)} item(s) twice")
    if not taken.items:
        raise UserError(f"{place}: no item to be answered; excluded: {dict(taken.excluded) or 'none'}")
    return taken


def by_logprob(task: Task, options: Options, has_weights: bool) -> bool:
    """Whether options are compared by log-probability (else words are asked for)."""
    if task.kind == "logprob":
        if not has_weights or options.method == "generate":
            raise UserError(
                f"--task {task.name}: compares log-probabilities, which need --model, or logps in --responses"
            )
        return True
    if task.kind != "choice":
        return False
    if options.method == "logprob" and not has_weights:
        raise UserError("--method logprob: log-probabilities need --model; an endpoint's are not read")
    return has_weights and (options.method == "logprob" or (options.method == "auto" and not task.generated))


def score(task: Task, taken: TaskItems, answers: Sequence[Answer], options: Options) -> tuple[dict[str, Any], Outcome]:
    """(result, outcome). result: `task system n excluded missing failed score metric interval scores by by_n ...`.

    n: items that count; missing: of these without an answer; failed: of these with one that nothing could be made of.
    """
    matched = match(taken.items, answers)
    outcome = task.score(taken, matched, options)
    statuses = Counter(one.status for one in outcome.scored)
    values = [one.value for one in outcome.scored if one.value is not None]
    if outcome.score is not None and task.kind != "judged" and task.kind != "logprob":
        values += [0.0] * (len(outcome.scored) - len(values))
    around = interval([values]) if values else None
    scale = 100.0 if task.name == "blend_sa" else 1.0

    def scaled(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value * scale

    result = {
        "task": task.name,
        "system": ", ".join(matched.systems) or None,
        "n": len(outcome.scored),
        "excluded": sum(taken.excluded.values()),
        "missing": statuses["missing"],
        "failed": statuses["failed"],
        "score": outcome.score,
        "metric": outcome.metric,
        "interval": None if around is None else [scaled(around.low), scaled(around.high)],
        "scores": dict(outcome.scores),
        "by": {dimension: dict(names) for dimension, names in outcome.by.items()},
        "by_n": {dimension: dict(names) for dimension, names in outcome.by_n.items()},
        "excluded_by": dict(taken.excluded),
        "unmatched": matched.unmatched,
        "answer_language": _languages(taken.items, matched),
        "length_cut": _cut(matched),
        "mode": options.mode,
        "query_language": options.query_language,
        "notes": list(taken.notes),
    }
    return result, outcome


def _languages(items: Sequence[Item], matched: Matched) -> dict[str, dict[str, int]]:
    """question's language -> answer's language -> how many answers."""
    found: dict[str, Counter[str]] = {}
    for item in items:
        for one in matched.answers.get(item.id, []):
            if one.response:
                found.setdefault(detect(item.question), Counter())[detect(one.response)] += 1
    return {asked: dict(counts.most_common()) for asked, counts in found.items()}


def _cut(matched: Matched) -> int:
    """Answers that the token limit ended."""
    return sum(one.row.get("finish_reason") == "length" for answers in matched.answers.values() for one in answers)


def score_lines(outcome: Outcome, task: str, system: str | None) -> list[dict[str, Any]]:
    """One line an item, for reports: its groups, score and status."""
    return [
        {
            "id": one.item.id, "task": task, "system": system, **one.item.groups, "question": one.item.question,
            "prediction": one.prediction, "score": one.value, "status": one.status,
        }
        for one in outcome.scored
    ]  # fmt: skip
