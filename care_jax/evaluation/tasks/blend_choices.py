"""BLEnD's multiple-choice questions (Myung et al. 2024)."""

import json
from collections.abc import Mapping

from care_jax.data.cultures import culture_id
from care_jax.data.rows.row import shorten
from care_jax.data.rows.table import open_table
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import Matched
from care_jax.evaluation.items import Item, Options, Outcome, TaskItems, select_items
from care_jax.evaluation.tasks.choice_scores import add_unit_mean, score_choices
from care_jax.evaluation.tasks.parsing import blend_choice


def read_choices(path: str, options: Options) -> TaskItems:
    """Reads mc_questions_file*.csv (a file, a folder of them) or the hub's rows. The unit of an item is its ID."""
    items = []
    for row, _ in open_table(path, {}):
        values = row.value or {}
        missing = [key for key in ("MCQID", "prompt", "choices", "answer_idx") if key not in values]
        if missing:
            raise UserError(f"{row.place}: no {', '.join(missing)}; its keys are {', '.join(map(str, values))}")
        choices = _parse_choices(values["choices"], row.place)
        right = str(values["answer_idx"]).strip()
        if right not in choices:
            raise UserError(f"{row.place}, answer_idx: found {right!r}, expected one of {', '.join(choices)}")
        country = str(values.get("country", ""))
        items.append(
            Item(
                id=str(values["MCQID"]),
                question=str(values["prompt"]),
                prompt=str(values["prompt"]),
                groups={"country": country, "culture": culture_id(country)} if country else {},
                choices=tuple(f" {letter}" for letter in choices),
                letters=tuple(choices),
                right=(list(choices).index(right),),
                wordings=tuple(choices.values()),
                unit=str(values.get("ID", values["MCQID"])),
                language="English",
            )
        )
    return TaskItems(select_items(items, options, path))


def _parse_choices(value: object, place: str) -> dict[str, str]:
    """Returns letter -> option."""
    try:
        choices = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UserError(f"{place}, choices: not JSON: {error}") from None
    if not isinstance(choices, Mapping) or not choices:
        raise UserError(f"{place}, choices: expected an object of letter and option, found {shorten(choices)}")
    return {str(key): str(option) for key, option in choices.items() if option is not None}


def score_blend_choices(task_items: TaskItems, matched: Matched, options: Options) -> Outcome:
    """Returns acc over items, and beside it over the questions (IDs) that share options."""
    return add_unit_mean(score_choices(task_items, matched, options, _parse_choice))


def _parse_choice(item: Item, text: str, options: Options) -> str | None:
    """Returns the letter that an answer chooses, by the official parser, or in mode strict by the robust one."""
    return blend_choice(text, dict(zip(item.letters, item.wordings)), robust=options.mode == "strict")
