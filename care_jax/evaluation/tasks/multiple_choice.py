"""The readers of multiple-choice tasks: INCLUDE, CulturalBench, FORK, and any table by a map of its columns."""

from collections import Counter

from care_jax.data.rows.table import open_table, require_fields
from care_jax.evaluation.items import Item, Options, TaskItems, select_items
from care_jax.evaluation.tasks.choice_table import (
    ALIASES,
    LETTERS,
    ChoiceQuestion,
    parse_question,
    parse_truth,
    row_groups,
    row_id,
)
from care_jax.evaluation.tasks.fewshot import Prompt, PromptFormat, join_prompt, read_examples


def read_mcq(path: str, options: Options) -> TaskItems:
    """Reads any table of question, options (a list, or a column each) and answer (index, letter or text)."""
    return _read(path, options, lambda question, options: Prompt("", _plain_prompt(question)))


def read_include(path: str, options: Options) -> TaskItems:
    """Reads INCLUDE's rows, of either revision (`choices`, or option_a to option_d).

    In parity the prompt is that of lm-evaluation-harness, byte for byte: no blank line between its description and the
    question, and a space before 'D.' from the line folding of its YAML. With examples it is that of its few_shot_en
    tasks.
    """
    return _read(path, options, _include_prompt)


def _include_prompt(question: ChoiceQuestion, options: Options) -> Prompt:
    task = "are multiple-choice questions (with answers)" if options.num_fewshot else "is multiple-choice question"
    description = f"The following {task} about {question.domain}." if question.domain else ""
    if options.mode == "strict":
        return Prompt(description + "\n\n" if description else "", _plain_prompt(question))
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices)]
    if len(lines) > 3:
        lines[3] = " " + lines[3]
    return Prompt(description, "\n".join([question.text.strip(), *lines, "Answer:"]))


def _plain_prompt(question: ChoiceQuestion) -> str:
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, question.choices)]
    return "\n".join([question.text.strip(), *lines, "Answer:"])


def _read(path: str, options: Options, prompt_format: PromptFormat) -> TaskItems:
    rows = [parse_question(row, values) for row, values in open_table(path, ALIASES, options.columns)]
    questions = [question for question in rows if question is not None]
    selected = select_items(questions, options, path)
    examples = read_examples(options, prompt_format)
    items = [
        Item(
            id=question.id,
            question=question.text,
            prompt=join_prompt(question, prompt_format(question, options), examples, options),
            groups=question.groups,
            choices=tuple(f" {letter}" for letter in LETTERS[: len(question.choices)]),
            letters=tuple(LETTERS[: len(question.choices)]),
            right=(question.right,),
            wordings=question.choices,
            language=question.language,
        )
        for question in selected
    ]
    blank = len(rows) - len(questions)
    return TaskItems(items, Counter({"empty_question": blank} if blank else {}))


def read_culturalbench(path: str, options: Options) -> TaskItems:
    """Reads CulturalBench's easy rows (four options) or hard rows (a statement per option), or CulturalTeaming's."""
    _, values = next(iter(open_table(path, ALIASES, options.columns)), (None, {}))
    is_hard = "option" in values and "option_a" not in values and "choices" not in values
    return read_hard(path, options) if is_hard else read_mcq(path, options)


def read_hard(path: str, options: Options) -> TaskItems:
    """Reads CulturalBench-Hard: an item per row, true or false; the rows of a question are a unit."""
    items = []
    for row, values in open_table(path, ALIASES, options.columns):
        require_fields(row, values, "question", "option", "answer")
        question, option = str(values["question"]).strip(), str(values["option"]).strip()
        items.append(
            Item(
                id=row_id(values, row),
                question=f"{question}\n{option}",
                prompt=f"Question: {question}\nAnswer: {option}\n"
                "Is this answer right? Say True or False and nothing else.\nTrue or False:",
                groups=row_groups(values),
                choices=(" True", " False"),
                letters=("True", "False"),
                right=(0 if parse_truth(values["answer"], row) else 1,),
                unit=str(values.get("unit", values["question"])),
                language=values.get("language"),
            )
        )
    items = select_items(items, Options(language=options.language), path)
    units = set(list(dict.fromkeys(item.unit for item in items))[: options.limit])
    return TaskItems([item for item in items if item.unit in units])
