"""Multiple-choice tasks: INCLUDE, CulturalBench, FORK, and any table by a map of its columns.

An item is scored by the option with the highest log-probability, or by the one that an answer in words names.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from care_jax.data.cultures import culture_id
from care_jax.data.rows.row import Row, shorten
from care_jax.data.rows.table import open_table, require_fields
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import Answer, MatchedAnswers
from care_jax.evaluation.items import Item, ItemScore, Options, Outcome, TaskItems, mean_score, select_items, summarize
from care_jax.evaluation.tasks.parsing import option_letter
from care_jax.textfiles import JsonObject

LETTERS = "ABCDEFGHIJ"
_OPTION_KEYS = tuple(f"option_{letter.lower()}" for letter in LETTERS)
_ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "sample_id", "data_idx"),
    "unit": ("question_idx", "unit"),
    "question": ("prompt_question", "question", "query", "input", "problem"),
    "choices": ("choices", "options", "candidates"),
    **{key: (key, f"prompt_{key}", f"Option {letter}", letter) for key, letter in zip(_OPTION_KEYS, LETTERS)},
    "option": ("prompt_option", "option"),
    "answer": ("answer", "Answer Key", "answer_idx", "label", "target", "correct_answer", "gold"),
    "culture": ("culture", "associated_culture"),
    "country": ("country", "region"),
    "language": ("language", "lang"),
    "domain": ("domain", "dimension"),
    "subject": ("subject", "topic", "type"),
    "regional_feature": ("regional_feature",),
    "level": ("level",),
    "category": ("category", "cul_type", "culture_type"),
    "cultural_sensitivity": ("cultural_sensitivity_label", "cultural_sensitivity"),
}
_GROUPS = (
    "culture", "country", "language", "domain", "subject", "regional_feature", "category", "cultural_sensitivity",
)  # fmt: skip


# Returns the two parts of a prompt, between which few-shot examples stand: a description of the task, and the question
# with its options, up to the answer.
PromptFormat: TypeAlias = Callable[[Item, Options], tuple[str, str]]
Parser: TypeAlias = Callable[[Item, str, Options], str | None]  # an answer in words -> the letter of its option


# --- the readers -----------------------------------------------------------------------------------------------------


def read_mcq(path: str, options: Options) -> TaskItems:
    """Reads any table of question, options (a list, or a column each) and answer (index, letter or text)."""
    return _read(path, options, lambda item, options: ("", _plain_prompt(item)))


def read_include(path: str, options: Options) -> TaskItems:
    """Reads INCLUDE's rows, of either revision (`choices`, or option_a to option_d).

    In parity the prompt is that of lm-evaluation-harness, byte for byte: no blank line between its description and the
    question, and a space before 'D.' from the line folding of its YAML. With examples it is that of its few_shot_en
    tasks.
    """
    return _read(path, options, _include_prompt)


def _include_prompt(item: Item, options: Options) -> tuple[str, str]:
    task = "are multiple-choice questions (with answers)" if options.num_fewshot else "is multiple-choice question"
    domain = item.groups.get("domain", "").strip()
    description = f"The following {task} about {domain}." if domain else ""
    if options.mode == "strict":
        return description + "\n\n" if description else "", _plain_prompt(item)
    lines = [f"{letter}. {choice}" for letter, choice in zip(item.letters, item.wordings)]
    if len(lines) > 3:
        lines[3] = " " + lines[3]
    return description, "\n".join([item.question.strip(), *lines, "Answer:"])


def _plain_prompt(item: Item) -> str:
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(item.letters, item.wordings)]
    return "\n".join([item.question.strip(), *lines, "Answer:"])


def _read(path: str, options: Options, prompt_format: PromptFormat) -> TaskItems:
    rows = [_parse_question(row, values) for row, values in open_table(path, _ALIASES, options.columns)]
    questions = [item for item in rows if item is not None]
    selected = select_items(questions, options, path)
    examples = _read_examples(options, prompt_format) if options.num_fewshot else {}
    items = [replace(item, prompt=_join_prompt(item, prompt_format, examples, options)) for item in selected]
    blank = len(rows) - len(questions)
    return TaskItems(items, Counter({"empty_question": blank} if blank else {}))


def read_culturalbench(path: str, options: Options) -> TaskItems:
    """Reads CulturalBench's easy rows (four options) or hard rows (a statement per option), or CulturalTeaming's."""
    _, values = next(iter(open_table(path, _ALIASES, options.columns)), (None, {}))
    is_hard = "option" in values and "option_a" not in values and "choices" not in values
    return read_hard(path, options) if is_hard else read_mcq(path, options)


def read_hard(path: str, options: Options) -> TaskItems:
    """Reads CulturalBench-Hard: an item per row, true or false; the rows of a question are a unit."""
    items = []
    for row, values in open_table(path, _ALIASES, options.columns):
        require_fields(row, values, "question", "option", "answer")
        question, option = str(values["question"]).strip(), str(values["option"]).strip()
        truth = str(values["answer"]).strip().casefold()
        if truth not in ("true", "false", "1", "0"):
            raise UserError(f"{row.place}, answer: expected true or false, found {values['answer']!r}")
        items.append(
            Item(
                id=_row_id(values, row),
                question=f"{question}\n{option}",
                prompt=f"Question: {question}\nAnswer: {option}\n"
                "Is this answer right? Say True or False and nothing else.\nTrue or False:",
                groups=_row_groups(values),
                choices=(" True", " False"),
                letters=("True", "False"),
                right=(0 if truth in ("true", "1") else 1,),
                unit=str(values.get("unit", values["question"])),
                language=values.get("language"),
            )
        )
    items = select_items(items, Options(language=options.language), path)
    units = set(list(dict.fromkeys(item.unit for item in items))[: options.limit])  # the limit counts questions
    return TaskItems([item for item in items if item.unit in units])


# --- the fields of a row ---------------------------------------------------------------------------------------------


def _parse_question(row: Row, values: JsonObject) -> Item | None:
    """Returns the question in a row, without its prompt, or None if its text is blank.

    Raises UserError if the options or the answer cannot be used.
    """
    require_fields(row, values, "question", "answer")
    choices = _choices(values, row)
    if _is_blank(values):
        return None
    letters = LETTERS[: len(choices)]
    return Item(
        id=_row_id(values, row),
        question=str(values["question"]),
        prompt="",
        groups=_row_groups(values),
        choices=tuple(f" {letter}" for letter in letters),
        letters=tuple(letters),
        right=(_right_index(values["answer"], choices, row),),
        wordings=tuple(choices),
        language=values.get("language"),
    )


def _is_blank(values: JsonObject) -> bool:
    return not str(values["question"] or "").strip()


def _row_id(values: JsonObject, row: Row) -> str:
    return str(values["id"]) if values.get("id") not in (None, "") else str(row.number)


def _row_groups(values: JsonObject) -> dict[str, str]:
    """Returns the groups that a row belongs to, by dimension; a row with a country has a culture too."""
    groups = {key: str(values[key]) for key in _GROUPS if values.get(key) not in (None, "")}
    if "culture" not in groups and "country" in groups:
        groups["culture"] = culture_id(groups["country"])
    return groups


def _choices(values: JsonObject, row: Row) -> list[str]:
    choices = values.get("choices")
    if choices is None:
        choices = [values[key] for key in _OPTION_KEYS if values.get(key) not in (None, "")]
    elif isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            choices = [part.strip() for part in choices.split("|")]
    if isinstance(choices, Mapping):
        choices = choices["text"] if "text" in choices else list(choices.values())
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
        raise UserError(
            f"{row.place}: expected 2 to {len(LETTERS)} options, in `choices` or option_a, option_b, ...; "
            f"found {shorten(choices)}"
        )
    return [str(choice) for choice in choices]


def _right_index(value: object, choices: Sequence[str], row: Row) -> int:
    """Returns the index of the right option, named by an index from 0, a letter (also 'Option B') or its own text."""
    text = str(value).strip()
    stripped = [choice.strip() for choice in choices]
    letter = text.removeprefix("Option ").removeprefix("option_").strip(".() ").upper()
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
    elif text in stripped:
        index = stripped.index(text)
    elif len(letter) == 1 and letter in LETTERS:
        index = LETTERS.index(letter)
    else:
        index = int(text) if text.isdigit() else -1
    if not 0 <= index < len(choices):
        raise UserError(
            f"{row.place}, answer: found {value!r}, expected 0 to {len(choices) - 1}, a letter up to "
            f"{LETTERS[len(choices) - 1]}, or an option's text"
        )
    return index


# --- few-shot examples -----------------------------------------------------------------------------------------------

_Examples: TypeAlias = Mapping[tuple[str, ...], Mapping[str, str]]  # kind -> question as in its prompt -> right letter


def _kind(groups: Mapping[str, str]) -> tuple[str, ...]:
    """Returns what examples share with a question: its language, and its domain or else its subject."""
    names = ("language", "domain" if "domain" in groups else "subject")
    return tuple(groups[name].strip() for name in names if name in groups)


def _read_examples(options: Options, prompt_format: PromptFormat) -> _Examples:
    """Returns the first different questions of each kind in `fewshot`, one more than a prompt needs."""
    if options.fewshot is None:
        raise UserError("--num-fewshot: examples are taken from --fewshot FILE, such as a validation or dev split")
    examples: dict[tuple[str, ...], dict[str, str]] = {}
    for row, values in open_table(options.fewshot, _ALIASES, options.columns):
        require_fields(row, values, "question", "answer")
        letters = examples.setdefault(_kind(_row_groups(values)), {})
        if len(letters) > options.num_fewshot or _is_blank(values):
            continue
        item = _parse_question(row, values)
        if item is not None:
            letters.setdefault(prompt_format(item, options)[1], item.letters[item.right[0]])
    return examples


def _join_prompt(item: Item, prompt_format: PromptFormat, examples: _Examples, options: Options) -> str:
    """Returns the prompt of a question after `num_fewshot` examples of its kind, none of which is the question."""
    description, question = prompt_format(item, options)
    kind = _kind(item.groups)
    solved = [f"{text} {letter}\n\n" for text, letter in examples.get(kind, {}).items() if text != question]
    if len(solved) < options.num_fewshot:
        raise UserError(
            f"--fewshot: {options.fewshot} has {len(solved)} example(s) of {', '.join(kind) or 'any kind'} "
            f"besides {shorten(item.question)}, expected {options.num_fewshot}"
        )
    return description + "".join(solved[: options.num_fewshot]) + question


# --- scoring ---------------------------------------------------------------------------------------------------------


def parse_letter(item: Item, text: str, options: Options) -> str | None:
    """Returns the letter of the option that an answer in words chooses, or None."""
    return option_letter(text, item.letters, item.wordings)


def parse_true_or_false(item: Item, text: str, options: Options) -> str | None:
    """Returns the last 'True' or 'False' in an answer, or None."""
    words = [word.capitalize() for word in text.replace("*", " ").replace(".", " ").split()]
    return next((word for word in reversed(words) if word in ("True", "False")), None)


def score_choices(
    task_items: TaskItems, matched: MatchedAnswers, options: Options, parse: Parser = parse_letter
) -> Outcome:
    """Returns acc, the share of items with the right option; a missing or unreadable answer is wrong."""
    return summarize([_score_item(item, matched, options, parse) for item in task_items.items], "acc")


def score_units(task_items: TaskItems, matched: MatchedAnswers, options: Options) -> Outcome:
    """Returns acc over units: the share of questions of which every item is right."""
    units: dict[str, list[ItemScore]] = {}
    for item in task_items.items:
        units.setdefault(str(item.unit), []).append(_score_item(item, matched, options, parse_true_or_false))
    return summarize([_score_unit(unit, parts) for unit, parts in units.items()], "acc (all of a question right)")


def score_culturalbench(task_items: TaskItems, matched: MatchedAnswers, options: Options) -> Outcome:
    """Scores hard items, which have units, by unit, and easy ones by item."""
    has_units = any(item.unit is not None for item in task_items.items)
    return (score_units if has_units else score_choices)(task_items, matched, options)


def _score_unit(unit: str, parts: Sequence[ItemScore]) -> ItemScore:
    first = parts[0].item
    item = Item(id=unit, question=first.question, prompt=first.prompt, groups=first.groups)
    status = max((part.status for part in parts), key=("scored", "failed", "missing").index)
    return ItemScore(item, float(all(part.value == 1.0 for part in parts)) if status == "scored" else None, status)


def check_logps(item: Item, logps: Sequence[float]) -> None:
    """Raises UserError unless there is a log-probability for each of the item's choices."""
    if len(logps) != len(item.choices):
        raise UserError(f"--responses: item {item.id}: {len(logps)} logps for {len(item.choices)} options")


def _score_item(item: Item, matched: MatchedAnswers, options: Options, parse: Parser) -> ItemScore:
    answers = matched.answers.get(item.id, [])
    chosen = [_chosen_letter(item, answer, options, parse) for answer in answers]
    values = [float(item.letters.index(letter) in item.right) for letter in chosen if letter in item.letters]
    if values:
        values += [0.0] * (len(chosen) - len(values))
    return mean_score(item, values, len(answers), next((letter for letter in reversed(chosen) if letter), None))


def _chosen_letter(item: Item, answer: Answer, options: Options, parse: Parser) -> str | None:
    if answer.logps is None:
        return parse(item, answer.response or "", options)
    check_logps(item, answer.logps)
    return item.letters[answer.logps.index(max(answer.logps))]
