"""Which of two texts a model finds likelier: cloze prompts with names of two cultures, and pairs of statements."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from care_jax.data.rows.fields import Fields
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.row import Row
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import Matched
from care_jax.evaluation.items import Item, Options, Outcome, Scored, TaskItems, limited, summarize

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


def read_cloze(path: str, options: Options) -> TaskItems:
    """Rows of a prompt, native and foreign names (a name, a JSON list, or names between |); or CAMeL's two tables.

    A folder of prompts*.csv (prompt, type) and entities*.csv (entity, type, culture) is CAMeL's, its workbooks saved as
    CSV: each prompt gets the names of its type. Where a prompt has a mask the name is put there and the whole text
    scored, else the name behind the prompt, given it.
    """
    place = pathlib.Path(path).expanduser()
    prompts = sorted(place.rglob("*prompts*.csv")) if place.is_dir() else []
    items = _camel(place, prompts, options) if prompts else _rows(path, options)
    return TaskItems(limited(items, options, path))


def _rows(path: str, options: Options) -> list[Item]:
    fields, items = Fields.make(_CLOZE, options.columns), []
    for row, found in _found(path, fields, "prompt", "native", "foreign"):
        native, foreign = (_names(found[key], row, key) for key in ("native", "foreign"))
        items.append(_cloze(str(found.get("id") or row.number), str(found["prompt"]), native, foreign, found))
    return items


def _camel(place: pathlib.Path, prompts: list[pathlib.Path], options: Options) -> list[Item]:
    entities: dict[str, dict[bool, list[str]]] = {}
    fields = Fields.make(_ENTITIES, None)
    files = [file for file in sorted(place.rglob("*entit*.csv")) if file not in prompts]
    if not files:
        raise UserError(f"{place}: prompts, but no file named *entit*.csv (entity, type, culture)")
    for file in files:
        for _, found in _found(str(file), fields, "entity", "side"):
            kind = str(found.get("type") or file.stem).casefold()
            foreign = str(found["side"]).strip().casefold() in _FOREIGN
            entities.setdefault(kind, {True: [], False: []})[foreign].append(str(found["entity"]).strip())
    items, fields = [], Fields.make(_CLOZE, options.columns)
    for file in prompts:
        for row, found in _found(str(file), fields, "prompt", "type"):
            names = entities.get(str(found["type"]).casefold())
            if names is None or not names[True] or not names[False]:
                raise UserError(
                    f"{row.place}: no native and foreign names of type {found['type']!r}; there are "
                    f"{', '.join(sorted(entities))}"
                )
            items.append(_cloze(f"{file.stem}:{row.row}", str(found["prompt"]), names[False], names[True], found))
    return items


def _cloze(id_: str, prompt: str, native: list[str], foreign: list[str], found: Mapping[str, Any]) -> Item:
    mask = next((one for one in _MASKS if one in prompt), None)
    names = [*native, *foreign]
    joined = [prompt.replace(mask, name) for name in names] if mask else [f" {name}" for name in names]
    return Item(
        id=id_,
        question=prompt,
        prompt="" if mask else prompt.rstrip(),
        groups={key: str(found[key]) for key in ("type", "culture") if found.get(key)},
        choices=tuple(joined),
        letters=tuple(names),
        right=tuple(range(len(native))),
        whole=mask is not None,
    )


def _names(value: Any, row: Row, key: str) -> list[str]:
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{row.place}, {key}: not a JSON list: {error}") from None
    names = [str(one).strip() for one in (value if isinstance(value, list | tuple) else str(value or "").split("|"))]
    if not any(names):
        raise UserError(f"{row.place}, {key}: no name")
    return [name for name in names if name]


def _found(path: str, fields: Fields, *needed: str) -> Any:
    for row in open_rows(path):
        if row.value is None:
            raise UserError(f"{row.place}: {row.problem}")
        found = fields.of(row.value)
        lacking = [key for key in needed if key not in found]
        if lacking:
            keys = ", ".join(map(str, row.value))
            raise UserError(f"{row.place}: no {', '.join(lacking)}; its columns are {keys} (name them by --columns)")
        yield row, found


def read_pairs(path: str, options: Options) -> TaskItems:
    """Rows of a stereotyped statement and its contrast, both scored whole (SHADES, by a column map)."""
    fields, items = Fields.make(_PAIRS, options.columns), []
    for row, found in _found(path, fields, "stereotyped", "contrast"):
        texts = (str(found["stereotyped"]), str(found["contrast"]))
        items.append(
            Item(
                id=str(found.get("id") or row.number),
                question=texts[0],
                prompt="",
                groups={key: str(found[key]) for key in ("language", "category", "country") if found.get(key)},
                choices=texts,
                letters=("stereotyped", "contrast"),
                right=(0,),
                language=found.get("language"),
                whole=True,
            )
        )
    return TaskItems(limited(items, options, path))


def score_comparisons(taken: TaskItems, matched: Matched, options: Options) -> Outcome:
    """The mean over items of the share of pairs (native, foreign) in which the foreign text is likelier: CAMeL's
    Cultural Bias Score (Naous et al. 2024)."""
    return _score(taken, matched, "cultural bias score", lambda native, foreign: foreign > native)


def score_pairs(taken: TaskItems, matched: Matched, options: Options) -> Outcome:
    """The share of pairs in which the stereotyped statement is the likelier; half of them is neutral."""
    return _score(taken, matched, "stereotype preferred", lambda stereotyped, contrast: stereotyped > contrast)


def _score(taken: TaskItems, matched: Matched, metric: str, prefers: Any) -> Outcome:
    scored = []
    for item in taken.items:
        answers = matched.answers.get(item.id, [])
        given = [one.logps for one in answers if one.logps is not None and len(one.logps) == len(item.choices)]
        if not given:
            scored.append(Scored(item, None, "failed" if answers else "missing"))
            continue
        others = [index for index in range(len(item.choices)) if index not in item.right]
        shares = [
            sum(prefers(logps[own], logps[other]) for own in item.right for other in others)
            / (len(item.right) * len(others))
            for logps in given
        ]
        scored.append(Scored(item, sum(shares) / len(shares)))
    return summarize(scored, metric, worst=None)
