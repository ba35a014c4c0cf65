"""Few-shot examples: solved questions that stand before a question in its prompt."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from care_jax.data.rows.row import shorten
from care_jax.data.rows.table import open_table, require_fields
from care_jax.errors import UserError
from care_jax.evaluation.items import Options
from care_jax.evaluation.tasks.choice_table import (
    ALIASES,
    LETTERS,
    ChoiceQuestion,
    is_blank,
    parse_question,
    question_kind,
)


class Prompt(NamedTuple):
    """The two parts of a prompt, between which the examples stand. question: with its options, up to the answer."""

    description: str
    question: str


PromptFormat: TypeAlias = Callable[[ChoiceQuestion, Options], Prompt]
Examples: TypeAlias = Mapping[tuple[str, ...], Mapping[str, str]]  # kind -> question as in its prompt -> right letter


def read_examples(options: Options, prompt_format: PromptFormat) -> Examples:
    """Returns the first different questions of each kind in `fewshot`, one more than a prompt needs."""
    if not options.num_fewshot:
        return {}
    if options.fewshot is None:
        raise UserError("--num-fewshot: examples are taken from --fewshot FILE, such as a validation or dev split")
    examples: dict[tuple[str, ...], dict[str, str]] = {}
    for row, values in open_table(options.fewshot, ALIASES, options.columns):
        require_fields(row, values, "question", "answer")
        letters = examples.setdefault(question_kind(values), {})
        if len(letters) > options.num_fewshot or is_blank(values):
            continue
        question = parse_question(row, values)
        if question is not None:
            letters.setdefault(prompt_format(question, options).question, LETTERS[question.right])
    return examples


def join_prompt(question: ChoiceQuestion, prompt: Prompt, examples: Examples, options: Options) -> str:
    """Returns the prompt of a question after `num_fewshot` examples of its kind, none of which is the question."""
    solved = [
        f"{text} {letter}\n\n" for text, letter in examples.get(question.kind, {}).items() if text != prompt.question
    ]
    if len(solved) < options.num_fewshot:
        raise UserError(
            f"--fewshot: {options.fewshot} has {len(solved)} example(s) of {', '.join(question.kind) or 'any kind'} "
            f"besides {shorten(question.text)}, expected {options.num_fewshot}"
        )
    return prompt.description + "".join(solved[: options.num_fewshot]) + prompt.question
