"""Questions with options: INCLUDE, CulturalBench, FORK, GeoMLAMA, and any table of that kind by a column map.

An option is chosen by the log-probability of its letter behind the prompt, or read from a free answer.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from care_jax.data.questions import culture_id
from care_jax.data.rows.fields import Fields
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.row import Row, shorten
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import Answer, Matched
from care_jax.evaluation.items import Item, Options, Outcome, Scored, TaskItems, limited, summarize
from care_jax.evaluation.tasks import parsing

LETTERS = "ABCDEFGHIJ"
_OPTION_KEYS = tuple(f"option_{letter.lower()}" for letter in LETTERS)
ALIASES: dict[str, tuple[str, ...]] = {
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
    *("culture", "country", "language", "domain", "subject", "regional_feature", "category"),
    "cultural_sensitivity",
)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_mcq(path: str, options: Options) -> TaskItems:
    """Any table of question, options (a list, or a column each) and the right one (index, letter or text)."""
    return _read(path, options, lambda found, choices, options: ("", _plain(found["question"], choices)))


def read_include(path: str, options: Options) -> TaskItems:
    """INCLUDE's rows, of either revision (`choices`, or option_a to option_d).

    In parity the prompt is lm-evaluation-harness's, byte for byte: its description runs into the question, and a space
    stands before 'D.', which its YAML folded there. With examples it is that of its few_shot_en tasks.
    """
    return _read(path, options, _include_prompt)


def _include_prompt(found: Mapping[str, Any], choices: Sequence[str], options: Options) -> tuple[str, str]:
    domain = str(found.get("domain", "")).strip()
    about = "are multiple-choice questions (with answers)" if options.num_fewshot else "is multiple-choice question"
    description = f"The following {about} about {domain}." if domain else ""
    if options.mode == "strict":
        return (description + "\n\n" if description else ""), _plain(found["question"], choices)
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)]
    if len(lines) > 3:
        lines[3] = " " + lines[3]
    return description, "\n".join([str(found["question"]).strip(), *lines, "Answer:"])


def _plain(question: Any, choices: Sequence[str]) -> str:
    lines = [f"{letter}. {str(choice).strip()}" for letter, choice in zip(LETTERS, choices)]
    return "\n".join([str(question).strip(), *lines, "Answer:"])


def read_culturalbench(path: str, options: Options) -> TaskItems:
    """CulturalBench's easy rows (four options) or its hard ones (a statement an option); CulturalTeaming's too."""
    first = next(iter(open_rows(path)), None)
    fields = Fields.make(ALIASES, options.columns)
    found = fields.of(first.value) if first is not None and first.value is not None else {}
    hard = "option" in found and "option_a" not in found and "choices" not in found
    return read_hard(path, options) if hard else read_mcq(path, options)


def read_hard(path: str, options: Options) -> TaskItems:
    """CulturalBench-Hard: an item for each row, true or false; the rows of one question count together."""
    fields, items = Fields.make(ALIASES, options.columns), []
    for row, found in _rows(path, fields):
        _need(row, found, "question", "option", "answer")
        question, option = str(found["question"]).strip(), str(found["option"]).strip()
        right = _truth(found["answer"], row)
        unit = str(found.get("unit", found["question"]))
        items.append(
            Item(
                id=_id(found, row),
                question=f"{question}\n{option}",
                prompt=f"Question: {question}\nAnswer: {option}\n"
                "Is this answer right? Say True or False and nothing else.\nTrue or False:",
                groups=_groups(found),
                choices=(" True", " False"),
                letters=("True", "False"),
                right=(0 if right else 1,),
                unit=unit,
                language=found.get("language"),
            )
        )
    wanted = limited(items, Options(language=options.language), path)
    units = list(dict.fromkeys(item.unit for item in wanted))[: options.limit]
    return TaskItems([item for item in wanted if item.unit in set(units)])


def _truth(value: Any, row: Row) -> bool:
    word = str(value).strip().casefold()
    if word not in ("true", "false", "1", "0"):
        raise UserError(f"{row.place}, answer: expected true or false, found {value!r}")
    return word in ("true", "1")


_Kind = tuple[str, ...]
# (found, choices, options) -> what stands before all questions, and the question with its options.
_Prompt = Callable[[Mapping[str, Any], Sequence[str], Options], tuple[str, str]]


def _read(path: str, options: Options, prompt: _Prompt) -> TaskItems:
    fields, items = Fields.make(ALIASES, options.columns), []
    excluded: Counter[str] = Counter()
    parts: dict[int, tuple[_Kind, str, str]] = {}
    for row, found in _rows(path, fields):
        _need(row, found, "question", "answer")
        choices = _choices(found, row)
        if not str(found["question"] or "").strip():
            excluded["empty_question"] += 1
            continue
        description, asked = prompt(found, choices, options)
        items.append(
            Item(
                id=_id(found, row),
                question=str(found["question"]),
                prompt=description + asked,
                groups=_groups(found),
                choices=tuple(f" {letter}" for letter in LETTERS[: len(choices)]),
                letters=tuple(LETTERS[: len(choices)]),
                right=(_right(found["answer"], choices, row),),
                language=found.get("language"),
                secret=tuple(choices),
            )
        )
        parts[id(items[-1])] = (_kind(found), description, asked)
    items = limited(items, options, path)
    if options.num_fewshot:
        examples = _examples(options, fields, prompt)
        items = [replace(one, prompt=_with_examples(one, *parts[id(one)], examples, options)) for one in items]
    return TaskItems(items, excluded)


def _kind(found: Mapping[str, Any]) -> _Kind:
    """What an example shares with the questions that it stands before: language and domain, or else the subject."""
    about = found.get("domain") or found.get("subject")
    return tuple(str(value).strip() for value in (found.get("language"), about) if value not in (None, ""))


def _examples(options: Options, fields: Fields, prompt: _Prompt) -> dict[_Kind, dict[str, str]]:
    """By kind, the first different questions of `fewshot` (one more than needed), as asked, and the letter of each."""
    examples: dict[_Kind, dict[str, str]] = {}
    if options.fewshot is None:
        raise UserError("--num-fewshot: examples are taken from --fewshot FILE, such as a validation or dev split")
    for row, found in _rows(options.fewshot, fields):
        _need(row, found, "question", "answer")
        held = examples.setdefault(_kind(found), {})
        if len(held) > options.num_fewshot or not str(found["question"] or "").strip():
            continue
        choices = _choices(found, row)
        _, asked = prompt(found, choices, options)
        held.setdefault(asked, LETTERS[_right(found["answer"], choices, row)])
    return examples


def _with_examples(
    item: Item,
    kind: _Kind,
    description: str,
    asked: str,
    examples: Mapping[_Kind, Mapping[str, str]],
    options: Options,
) -> str:
    """The prompt of a question behind the examples of its kind, of which it is never one."""
    mine = [f"{text} {letter}\n\n" for text, letter in examples.get(kind, {}).items() if text != asked]
    if len(mine) < options.num_fewshot:
        raise UserError(
            f"--fewshot: {options.fewshot} has {len(mine)} example(s) of {', '.join(kind) or 'any kind'} beside "
            f"{shorten(item.question)}, expected {options.num_fewshot}"
        )
    return description + "".join(mine[: options.num_fewshot]) + asked


def _rows(path: str, fields: Fields) -> Any:
    for row in open_rows(path):
        if row.value is None:
            raise UserError(f"{row.place}: {row.problem}")
        yield row, fields.of(row.value)


def _need(row: Row, found: Mapping[str, Any], *names: str) -> None:
    lacking = [name for name in names if name not in found]
    if lacking:
        keys = ", ".join(map(str, row.value or ()))
        raise UserError(f"{row.place}: no {', '.join(lacking)}; its columns are {keys} (name them by --columns)")


def _id(found: Mapping[str, Any], row: Row) -> str:
    return str(found["id"]) if found.get("id") not in (None, "") else str(row.number)


def _groups(found: Mapping[str, Any]) -> dict[str, str]:
    groups = {key: str(found[key]) for key in _GROUPS if found.get(key) not in (None, "")}
    if "culture" not in groups and "country" in groups:
        groups["culture"] = culture_id(groups["country"])
    return groups


def _choices(found: Mapping[str, Any], row: Row) -> list[str]:
    given = found.get("choices")
    if given is None:
        given = [found[key] for key in _OPTION_KEYS if found.get(key) not in (None, "")]
    elif isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            given = [part.strip() for part in given.split("|")]
    if isinstance(given, Mapping):
        given = given["text"] if "text" in given else list(given.values())
    if not isinstance(given, list | tuple) or not 2 <= len(given) <= len(LETTERS):
        raise UserError(
            f"{row.place}: expected 2 to {len(LETTERS)} options, in `choices` or option_a, option_b, ...; "
            f"found {shorten(given)}"
        )
    return [str(one) for one in given]


def _right(value: Any, choices: Sequence[str], row: Row) -> int:
    """An index from 0, a letter (also 'Option B'), or the option's own text."""
    text = str(value).strip()
    letter = text.removeprefix("Option ").removeprefix("option_").strip(".() ").upper()
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
    elif text in [choice.strip() for choice in choices]:
        index = [choice.strip() for choice in choices].index(text)
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


# --- GeoMLAMA: several right answers ---------------------------------------------------------------------------------

_GEOMLAMA = {
    "question": ("Corresponding Questions", "question"),
    "prompt": ("Prompt",),
    "answer": ("Ans", "answer"),
    "choices": ("Candidate Ans", "candidates"),
    "country": ("country",),
}


def read_geomlama(path: str, options: Options) -> TaskItems:
    """GeoMLAMA's gd_prompt_{lang}.tsv: several right answers among the candidates; blank rows only separate."""
    fields, items = Fields.make(_GEOMLAMA, options.columns), []
    for row, found in _rows(path, fields):
        if not any(str(value or "").strip() for value in (row.value or {}).values()):
            continue
        _need(row, found, "prompt", "answer", "choices")
        prompt = str(found["prompt"]).strip()
        choices, right = (_listed(found[key]) for key in ("choices", "answer"))
        unknown = [one for one in right if one not in choices]
        if unknown or not right:
            raise UserError(f"{row.place}, Ans: {unknown or 'nothing'} is not among the candidates {choices}")
        if "<mask>" not in prompt and "[MASK]" not in prompt:
            raise UserError(f"{row.place}, Prompt: no <mask> in {prompt!r}")
        question = str(found.get("question") or "").strip() or prompt
        items.append(
            Item(
                id=str(row.number),
                question=question,
                prompt=f"{question}\nChoose the {len(right)} best of these: {', '.join(choices)}.\nAnswer:",
                groups={"country": str(found["country"])} if found.get("country") else {},
                choices=tuple(prompt.replace("<mask>", one).replace("[MASK]", one) for one in choices),
                letters=tuple(choices),
                right=tuple(choices.index(one) for one in dict.fromkeys(right)),
                whole=True,
            )
        )
    return TaskItems(limited(items, options, path))


def _listed(value: Any) -> list[str]:
    return [part.strip() for part in str(value).replace("，", ",").split(",") if part.strip()]


def score_geomlama(taken: TaskItems, matched: Matched, options: Options) -> Outcome:
    """|top n of the candidates and the right ones| / n, n being how many are right."""
    scored = []
    for item in taken.items:
        values = []
        for one in matched.answers.get(item.id, []):
            ranked = _ranking(item, one)
            if ranked is not None:
                values.append(len(set(ranked[: len(item.right)]) & set(item.right)) / len(item.right))
        scored.append(_of_values(item, values, len(matched.answers.get(item.id, [])), None))
    return summarize(scored, "top-n overlap")


def _ranking(item: Item, answer: Answer) -> list[int] | None:
    if answer.logps is not None:
        _check_logps(item, answer)
        return sorted(range(len(item.choices)), key=lambda index: -answer.logps[index])  # type: ignore[index]
    text = (answer.response or "").casefold()
    places = [(text.find(name.casefold()), index) for index, name in enumerate(item.letters)]
    return [index for place, index in sorted(places) if place >= 0] or None


# --- scoring ---------------------------------------------------------------------------------------------------------


def score_choices(taken: TaskItems, matched: Matched, options: Options, parse: Any = None) -> Outcome:
    """acc: the share of items whose option is right; no answer, or one that says nothing, is wrong.

    parse(item, text, options) -> letter; default `parsing.option_letter`.
    """
    return summarize([_score(item, matched, options, parse) for item in taken.items], "acc")


def score_units(taken: TaskItems, matched: Matched, options: Options) -> Outcome:
    """acc: the share of units (questions) of which every item is right."""
    units: dict[str, list[Scored]] = {}
    for item in taken.items:
        units.setdefault(str(item.unit), []).append(_score(item, matched, options, _true_or_false))
    scored = []
    for unit, parts in units.items():
        statuses = {part.status for part in parts}
        status = next((name for name in ("missing", "failed") if name in statuses), "scored")
        value = float(all(part.value == 1.0 for part in parts)) if status == "scored" else None
        first = parts[0].item
        whole = Item(id=unit, question=first.question, prompt=first.prompt, groups=first.groups)
        scored.append(Scored(whole, value, status, more={}))  # type: ignore[arg-type]
    return summarize(scored, "acc (all of a question right)")


def _true_or_false(item: Item, text: str, options: Options) -> str | None:
    found = [word for word in text.replace("*", " ").replace(".", " ").split() if word.casefold() in ("true", "false")]
    return found[-1].capitalize() if found else None


def with_unit_macro(outcome: Outcome) -> Outcome:
    """Beside the mean over items, the mean over units of their items' means."""
    units: dict[str, list[float]] = {}
    for one in outcome.scored:
        units.setdefault(str(one.item.unit), []).append(one.value or 0.0)
    macro = sum(sum(values) / len(values) for values in units.values()) / len(units) if units else None
    scores = {"acc": outcome.score, "acc per ID (macro)": macro}
    return Outcome(outcome.scored, outcome.metric, outcome.score, scores, outcome.by, outcome.by_n)


def _score(item: Item, matched: Matched, options: Options, parse: Any) -> Scored:
    answers = matched.answers.get(item.id, [])
    chosen = [_chosen(item, one, options, parse) for one in answers]
    values = [float(item.letters.index(one) in item.right) for one in chosen if one in item.letters]
    failed = sum(one not in item.letters for one in chosen)
    if values:
        values += [0.0] * failed
    return _of_values(item, values, len(answers), next((one for one in reversed(chosen) if one), None))


def _of_values(item: Item, values: list[float], answers: int, prediction: str | None) -> Scored:
    if not answers:
        return Scored(item, None, "missing")
    if not values:
        return Scored(item, None, "failed", prediction)
    return Scored(item, sum(values) / len(values), "scored", prediction)


def _chosen(item: Item, answer: Answer, options: Options, parse: Any) -> str | None:
    if answer.logps is not None:
        _check_logps(item, answer)
        return item.letters[max(range(len(item.letters)), key=lambda index: answer.logps[index])]  # type: ignore[index]
    text = answer.response or ""
    if parse is not None:
        return parse(item, text, options)
    return parsing.option_letter(text, item.letters, item.secret or ())


def _check_logps(item: Item, answer: Answer) -> None:
    if answer.logps is None or len(answer.logps) != len(item.choices):
        found = 0 if answer.logps is None else len(answer.logps)
        raise UserError(f"--responses: item {item.id}: {found} logps for {len(item.choices)} options")
