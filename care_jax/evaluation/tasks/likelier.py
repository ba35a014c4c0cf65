"""Which of two texts a model finds likelier: cloze prompts with names of two cultures, and pairs of statements."""

import json
import operator
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from care_jax.data.rows.row import Row
from care_jax.data.rows.table import open_table, require_fields
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import MatchedAnswers
from care_jax.evaluation.items import Item, Options, Outcome, TaskItems, mean_score, select_items, summarize
from care_jax.textfiles import JsonObject

_MASKS = ("[MASK]", "<mask>", "<MASK>")
_CLOZE = {
    "id": ("id",),
    "prompt": ("prompt", "prompts", "text", "sentence"),
    "native": ("native", "arab", "local", "target"),
    "foreign": ("foreign", "western", "other"),
    "type": ("type", "entity_type", "domain", "category"),
    "culture": ("culture",),
}
_ENTITIES = {
    "entity": ("entity", "name", "word"),
    "side": ("culture", "side", "origin"),
    "type": ("type", "entity_type", "domain", "category"),
}
_PAIRS = {
    "id": ("id", "index"),
    "stereotyped": ("stereotyped", "stereotype", "biased", "sentence_a", "statement"),
    "contrast": ("contrast", "contrasting", "counter", "sentence_b", "anti_stereotype"),
    "language": ("language", "lang"),
    "category": ("category", "bias_type", "type"),
    "country": ("country", "region", "stereotyped_region"),
}
_FOREIGN = ("western", "foreign", "other")

_NativeAndForeign: TypeAlias = tuple[list[str], list[str]]
Comparison: TypeAlias = Callable[[float, float], bool]  # (logp of a right text, logp of another text) -> counts as 1


# --- reading ---------------------------------------------------------------------------------------------------------


def read_cloze(path: str, options: Options) -> TaskItems:
    """Reads rows of a prompt, native and foreign names (a name, a JSON list, or names between |), or CAMeL's tables.

    A folder of prompts*.csv (prompt, type) and entities*.csv (entity, type, culture) is CAMeL's: its workbooks saved as
    CSV. Each prompt gets the names of its type. If a prompt has a mask, the names replace it and the whole text is
    scored; otherwise the name is scored as a continuation of the prompt.
    """
    folder = pathlib.Path(path).expanduser()
    prompt_files = sorted(folder.rglob("*prompts*.csv")) if folder.is_dir() else []
    items = list(_read_camel(folder, prompt_files, options) if prompt_files else _read_rows(path, options))
    return TaskItems(select_items(items, options, path))


def _read_rows(path: str, options: Options) -> Iterator[Item]:
    for row, values in open_table(path, _CLOZE, options.columns):
        require_fields(row, values, "prompt", "native", "foreign")
        native, foreign = (_names(values[key], row, key) for key in ("native", "foreign"))
        yield _cloze_item(str(values.get("id") or row.number), values, native, foreign)


def _read_camel(folder: pathlib.Path, prompt_files: Sequence[pathlib.Path], options: Options) -> Iterator[Item]:
    names_by_type = _read_entities(folder, prompt_files)
    for file in prompt_files:
        for row, values in open_table(str(file), _CLOZE, options.columns):
            require_fields(row, values, "prompt", "type")
            names = names_by_type.get(str(values["type"]).casefold(), ([], []))
            if not all(names):
                raise UserError(
                    f"{row.place}: no native and foreign names of type {values['type']!r}; there are "
                    f"{', '.join(sorted(names_by_type))}"
                )
            yield _cloze_item(f"{file.stem}:{row.number_in_file}", values, *names)


def _read_entities(folder: pathlib.Path, prompt_files: Sequence[pathlib.Path]) -> dict[str, _NativeAndForeign]:
    """Returns the names by type."""
    files = [file for file in sorted(folder.rglob("*entit*.csv")) if file not in prompt_files]
    if not files:
        raise UserError(f"{folder}: prompts, but no file named *entit*.csv (entity, type, culture)")
    names_by_type: dict[str, _NativeAndForeign] = {}
    for file in files:
        for row, values in open_table(str(file), _ENTITIES):
            require_fields(row, values, "entity", "side")
            names = names_by_type.setdefault(str(values.get("type") or file.stem).casefold(), ([], []))
            is_foreign = str(values["side"]).strip().casefold() in _FOREIGN
            names[is_foreign].append(str(values["entity"]).strip())
    return names_by_type


def _cloze_item(id_: str, values: JsonObject, native: list[str], foreign: list[str]) -> Item:
    prompt = str(values["prompt"])
    mask = next((mask for mask in _MASKS if mask in prompt), None)
    names = [*native, *foreign]
    return Item(
        id=id_,
        question=prompt,
        prompt="" if mask else prompt.rstrip(),
        groups={key: str(values[key]) for key in ("type", "culture") if values.get(key)},
        choices=tuple(prompt.replace(mask, name) if mask else f" {name}" for name in names),
        letters=tuple(names),
        right=tuple(range(len(native))),
        standalone=mask is not None,
    )


def _names(value: object, row: Row, key: str) -> list[str]:
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{row.place}, {key}: not a JSON list: {error}") from None
    parts = value if isinstance(value, list | tuple) else str(value or "").split("|")
    names = [name for part in parts if (name := str(part).strip())]
    if not names:
        raise UserError(f"{row.place}, {key}: no name")
    return names


def read_pairs(path: str, options: Options) -> TaskItems:
    """Reads rows of a stereotyped statement and its contrast, each scored as a whole (SHADES, by a map of columns)."""
    items = []
    for row, values in open_table(path, _PAIRS, options.columns):
        require_fields(row, values, "stereotyped", "contrast")
        statements = (str(values["stereotyped"]), str(values["contrast"]))
        items.append(
            Item(
                id=str(values.get("id") or row.number),
                question=statements[0],
                prompt="",
                groups={key: str(values[key]) for key in ("language", "category", "country") if values.get(key)},
                choices=statements,
                letters=("stereotyped", "contrast"),
                right=(0,),
                language=values.get("language"),
                standalone=True,
            )
        )
    return TaskItems(select_items(items, options, path))


# --- scoring ---------------------------------------------------------------------------------------------------------


def score_comparisons(task_items: TaskItems, matched: MatchedAnswers, options: Options) -> Outcome:
    """Returns CAMeL's Cultural Bias Score (Naous et al. 2024): per item, the share of pairs (native, foreign) in which
    the foreign text is likelier; the mean over items."""
    return _score(task_items, matched, "cultural bias score", operator.lt)


def score_pairs(task_items: TaskItems, matched: MatchedAnswers, options: Options) -> Outcome:
    """Returns the share of pairs in which the stereotyped statement is likelier; one half is neutral."""
    return _score(task_items, matched, "stereotype preferred", operator.gt)


def _score(task_items: TaskItems, matched: MatchedAnswers, metric: str, compare: Comparison) -> Outcome:
    scores = []
    for item in task_items.items:
        answers = matched.answers.get(item.id, [])
        logps = [answer.logps for answer in answers if answer.logps and len(answer.logps) == len(item.choices)]
        shares = [_share(item, values, compare) for values in logps]
        scores.append(mean_score(item, shares, len(answers)))
    return summarize(scores, metric, worst=None)


def _share(item: Item, logps: Sequence[float], compare: Comparison) -> float:
    """Returns the share of pairs (right, other) for which `compare` holds."""
    others = [index for index in range(len(item.choices)) if index not in item.right]
    count = sum(compare(logps[right], logps[other]) for right in item.right for other in others)
    return count / (len(item.right) * len(others))
