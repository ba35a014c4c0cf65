"""The table of tasks, the one place where a task is added: its name, its reader, its scorer."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from care_jax.errors import UserError, nearest
from care_jax.evaluation.answers.responses import MatchedAnswers
from care_jax.evaluation.items import Options, Outcome, TaskItems
from care_jax.evaluation.tasks import blend, geomlama, likelier, multiple_choice, rated

Kind = Literal["judged", "text", "choice", "logprob"]


@dataclass(frozen=True)
class Task:
    """A set of questions with the functions that read them and score the answers.

    kind: judged (a judge rates the answers), text (answers are compared with references), choice (a choice is made by
    log-probability or in words) or logprob (only by log-probability). source: the dataset on the hub, or if
    `needs_file`, the GitHub repository that has the file; empty if the data is the user's. metric: what the score is.
    max_tokens, temperature: defaults for answers in words, as the task's authors have them.
    """

    name: str
    kind: Kind
    summary: str
    source: str
    licence: str
    read: Callable[[str, Options], TaskItems]
    score: Callable[[TaskItems, MatchedAnswers, Options], Outcome]
    metric: str
    max_tokens: int = 256
    temperature: float = 0.0
    answers_in_words: bool = False  # --method auto does not compare log-probabilities, even if the model is here
    fewshot: bool = False  # accepts --num-fewshot
    needs_file: bool = False  # must be given --data: the hub has no dataset that can be loaded


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("care_eval", "judged", "CARE's questions, answered freely, rated 1-10 by a judge", "geyang627/CARE-eval",
             "MIT", rated.read_care_items, rated.score_rated, "mean rating", 256, 0.7),
        Task("blend_sa", "text", "BLEnD's short answers, against those of a country's people", "nayeon212/BLEnD",
             "CC-BY-SA-4.0", blend.read_short, blend.score_short, "SEM-B(lite), 0-100", 512),
        Task("blend_mc", "choice", "BLEnD's multiple-choice questions (English)", "nayeon212/BLEnD",
             "CC-BY-SA-4.0", blend.read_choices, blend.score_choice_questions, "acc", 512, answers_in_words=True),
        Task("include", "choice", "INCLUDE's regional exam questions in 44 languages", "CohereLabs/include-base-44",
             "Apache-2.0", multiple_choice.read_include, multiple_choice.score_choices, "acc", 16, fewshot=True),
        Task("culturalbench", "choice", "CulturalBench Easy or Hard, whichever the columns show; also CulturalTeaming",
             "kellycyy/CulturalBench", "CC-BY-4.0", multiple_choice.read_culturalbench,
             multiple_choice.score_culturalbench, "acc", 16),
        Task("culturalbench_easy", "choice", "CulturalBench-Easy: one right option of four", "kellycyy/CulturalBench",
             "CC-BY-4.0", multiple_choice.read_mcq, multiple_choice.score_choices, "acc", 16, fewshot=True),
        Task("culturalbench_hard", "choice", "CulturalBench-Hard: four true or false statements per question",
             "kellycyy/CulturalBench", "CC-BY-4.0", multiple_choice.read_hard, multiple_choice.score_units, "acc", 16),
        Task("fork", "choice", "FORK: culinary commonsense, two options", "shramay-palta/FORK_ACL2023", "CC-BY-4.0",
             multiple_choice.read_mcq, multiple_choice.score_choices, "acc", 16, fewshot=True, needs_file=True),
        Task("geomlama", "choice", "GeoMLAMA: several right answers among the candidates", "WadeYin9712/GeoMLAMA",
             "not stated", geomlama.read_geomlama, geomlama.score_geomlama, "top-n overlap", 64, needs_file=True),
        Task("llm_globe", "judged", "LLM-GLOBE's open questions, rated 1-7 by the rubric globe", "raginlee/LLM-GLOBE",
             "unverified", rated.read_globe, rated.score_rated, "mean rating, 1-7", 512, 0.7, needs_file=True),
        Task("mcq", "choice", "any table of question, options and answer, by --columns (Global-MMLU and such)", "",
             "the data's", multiple_choice.read_mcq, multiple_choice.score_choices, "acc", 16, fewshot=True),
        Task("cloze", "logprob", "prompts with native and foreign names (CAMeL): which the model expects", "",
             "the data's", likelier.read_cloze, likelier.score_comparisons, "cultural bias score, 0-1"),
        Task("statement_pairs", "logprob", "stereotyped statements and their contrasts (SHADES): which is likelier",
             "", "the data's", likelier.read_pairs, likelier.score_pairs, "stereotype preferred, 0-1"),
    )
}  # fmt: skip
# Other names of the tasks, such as those of lm-evaluation-harness.
ALIASES = {
    "care": "care_eval", "care-eval": "care_eval", "blend": "blend_sa", "blend-sa": "blend_sa",
    "blend-mc": "blend_mc", "include_base_44": "include", "include_base": "include", "culturalteaming": "culturalbench",
    "llm-globe": "llm_globe", "camel": "cloze", "shades": "statement_pairs", "global_mmlu": "mcq",
    "statement-pairs": "statement_pairs",
}  # fmt: skip
_LANGUAGE_PREFIXES = {"include_base_44_": "include", "include_": "include", "global_mmlu_": "mcq"}


def find(name: str, options: Options) -> tuple[Task, Options]:
    """Returns the task that `name` means, and the options with the language that the name may end in.

    `include_base_44_chinese` is the task include with the language chinese. Raises UserError for an unknown name.
    """
    key = name.strip().casefold()
    key = ALIASES.get(key, key)
    if key in TASKS:
        return TASKS[key], options
    for prefix, task in _LANGUAGE_PREFIXES.items():
        if key.startswith(prefix):
            language = options.language or key.removeprefix(prefix)
            return TASKS[task], dataclasses.replace(options, language=language)
    raise UserError(f"--task: found {name!r}{nearest(key, list(TASKS))}, expected one of {', '.join(TASKS)}")


def read(task: Task, path: str | None, options: Options) -> TaskItems:
    """Returns the task's items from the file or folder `path`, or without one from the task's dataset on the hub.

    Raises UserError if the task needs a path or takes no few-shot examples, if two items have the same id, or if there
    is no item.
    """
    if options.num_fewshot and not task.fewshot:
        names = ", ".join(each.name for each in TASKS.values() if each.fewshot)
        raise UserError(f"--num-fewshot: {task.name} takes no examples; {names} take examples")
    source = path or task.source
    if not source or (path is None and task.needs_file):
        files = f" (see github.com/{task.source})" if task.source else ""
        raise UserError(f"--data: {task.name} needs its file{files}")
    task_items = task.read(source, options)
    repeated = [id_ for id_, count in Counter(item.id for item in task_items.items).items() if count > 1]
    if repeated:
        raise UserError(f"{source}: {len(repeated)} id(s) belong to several items, such as {repeated[0]!r}")
    if not task_items.items:
        raise UserError(f"{source}: found no item to answer; excluded: {dict(task_items.excluded) or 'none'}")
    return task_items


def uses_logprobs(task: Task, options: Options, has_weights: bool) -> bool:
    """Returns whether a task's choices are compared by log-probability; otherwise the model answers in words.

    has_weights: whether the model is on this machine, which an endpoint's is not. Raises UserError if the task or
    --method needs log-probabilities and the model or --method gives none.
    """
    if task.kind == "logprob":
        if options.method == "generate":
            raise UserError(f"--method generate: {task.name} compares log-probabilities; expected auto or logprob")
        if not has_weights:
            raise UserError(f"--task {task.name}: its log-probabilities need --model, or logps in --responses")
        return True
    if task.kind != "choice":
        return False
    if options.method == "auto":
        return has_weights and not task.answers_in_words
    if options.method == "logprob" and not has_weights:
        raise UserError("--method logprob: log-probabilities need --model; those of an endpoint are not read")
    return options.method == "logprob"
