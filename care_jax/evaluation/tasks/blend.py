"""BLEnD (Myung et al. 2024): short answers, compared with those of a country's people, and multiple-choice questions.

Reads the files of the authors' repository (data/annotations, questions, prompts) and the hub's lists. The scorer of
short answers follows evaluation/exact_match.py except for its lemmatizers, which need a dozen heavy packages: words are
compared as `TOKENIZERS` splits them, and the metrics are labelled (lite).
"""

import csv
import json
import pathlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from care_jax.data.cultures import culture_id
from care_jax.data.readers.blend import (
    FILES,
    Entry,
    Votes,
    country_language,
    country_of_file,
    exclusion,
    open_annotations,
)
from care_jax.data.rows.row import shorten
from care_jax.data.rows.table import open_table, require_fields
from care_jax.errors import UserError, nearest
from care_jax.evaluation.answers.responses import MatchedAnswers
from care_jax.evaluation.items import Item, ItemScore, Options, Outcome, TaskItems, select_items, summarize
from care_jax.evaluation.tasks.multiple_choice import score_choices
from care_jax.evaluation.tasks.parsing import blend_choice

_OFFICIAL_PROMPT = "inst-4"
_DEFAULT_PROMPT = "Give one short answer to this question, and nothing else.\n\nQuestion: {q}\nAnswer:"


@dataclass(frozen=True, slots=True)
class Annotation:
    """The answers of a country's people. language: language of the local answers. votes: the most frequent first."""

    language: str
    votes: tuple[Votes, ...]


# --- reading short answers --------------------------------------------------------------------------------------------


def read_short(path: str, options: Options) -> TaskItems:
    """Reads `{Country}_data*.json` (a file or a folder of them) or the hub's rows, with prompts and topics from the
    files next to them.

    Excludes what the authors exclude: unanswerable (no-answer and not-applicable together at least 3), unknown (idk at
    least 5), and questions without an answer.
    """
    items: list[Item] = []
    excluded: Counter[str] = Counter()
    notes: list[str] = []
    files = _list_files(path)
    for file in files:
        country = country_of_file(file)
        template = _prompt_template(file, country, options)
        if template is None:
            template = _DEFAULT_PROMPT
            notes.append(f"{country}: no file of official prompts next to the data; asked with a prompt in English")
        questions_file = _find_near(file, f"{country}_questions*.csv")
        topics = {} if questions_file is None else _read_topics(questions_file)
        for entry in open_annotations(str(file) if file.exists() else path):
            entry_country = str(entry.values.get("country", country))
            item = _make_item(entry, entry_country, template, options)
            if len(files) > 1 or "country" in entry.values:  # ids are unique per country only
                item = replace(item, id=f"{entry_country}:{entry.id}")
            if entry.id in topics:
                item = replace(item, groups={**item.groups, "topic": topics[entry.id]})
            reason = exclusion(entry.values["idks"]) or (None if entry.votes else "no_annotations")
            if reason:
                excluded[reason] += 1
            else:
                items.append(item)
    return TaskItems(select_items(items, options, path), excluded, tuple(dict.fromkeys(notes)))


def _list_files(path: str) -> list[pathlib.Path]:
    location = pathlib.Path(path).expanduser()
    if not location.is_dir():
        return [location]
    files = [file for file in location.rglob("*_data*.json") if file.is_file() and re.search(FILES, file.name)]
    if not files:
        raise UserError(f"{path}: no file named COUNTRY_data.json in this folder")
    return sorted(files)


def _make_item(entry: Entry, country: str, template: str, options: Options) -> Item:
    local_language = country_language(country)
    language = "English" if local_language is None else local_language.name
    in_english = options.query_language == "english"
    translated = entry.values.get("translated")
    if in_english and not str(translated or "").strip():
        raise UserError(f"{entry.place}: --query-language english, but it has no en_question")
    question = str(translated if in_english else entry.values["question"])
    return Item(
        id=entry.id,
        question=question,
        prompt=template.replace("{q}", question),
        groups={"country": country, "culture": culture_id(country), "language": language},
        language="English" if in_english else language,
        fields={"country": country, "question_en": translated},
        annotation=Annotation(language, entry.votes),
    )


def _find_near(file: pathlib.Path, pattern: str) -> pathlib.Path | None:
    folders = [file.parent, *(file.parent.parent / name for name in ("prompts", "questions"))]
    return next((path for folder in folders for path in sorted(folder.glob(pattern))), None)


def _prompt_template(file: pathlib.Path, country: str, options: Options) -> str | None:
    """Returns the official template with {q}, in the language of the query, or None if there is no file of them."""
    prompts_file = _find_near(file, f"{country}_prompts*.csv")
    if prompts_file is None:
        if options.prompt is not None:
            raise UserError(f"--prompt: no {country}_prompts.csv next to {file}")
        return None
    name = options.prompt or _OFFICIAL_PROMPT
    column = "English" if options.query_language == "english" else "Translation"
    prompts = {row["id"]: row[column] for row in _read_csv(prompts_file, "id", column)}
    if name not in prompts:
        raise UserError(
            f"--prompt: {prompts_file} has no {name!r}{nearest(name, list(prompts))}; it has {', '.join(prompts)}"
        )
    return prompts[name]


def _read_csv(path: pathlib.Path, *required: str) -> list[dict[str, str]]:
    """Returns the rows. Raises UserError if there are none or a required column is missing."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = reader.fieldnames or (), list(reader)
    if not rows or not set(required) <= set(columns):
        raise UserError(
            f"{path}: found {len(rows)} rows with the columns {', '.join(columns) or 'none'}, "
            f"expected rows with the columns {', '.join(required)}"
        )
    return rows


def _read_topics(path: pathlib.Path) -> dict[str, str]:
    """Returns the topic of each question in `{Country}_questions.csv`, by id."""
    return {row["ID"]: row.get("Topic", "") for row in _read_csv(path, "ID")}


# --- scoring short answers --------------------------------------------------------------------------------------------

_WIDE = str.maketrans({"：": ":", "、": ",", "，": ",", "。": "."})
_TASHKEEL = re.compile(r"[\u064b-\u065f\u0670\u0640]")
_ALEF = str.maketrans({"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ة": "ه"})


def score_short(task_items: TaskItems, matched: MatchedAnswers, options: Options) -> Outcome:
    """Returns SEM-B, 100 x the share of items whose response holds an answer, and SEM-W, weighted by its votes.

    An item without a response counts 0. Several responses to an item are averaged.
    """
    scores, weighted = [], 0.0
    for item in task_items.items:
        responses = [answer.response for answer in matched.answers.get(item.id, []) if answer.response is not None]
        if not responses:
            scores.append(ItemScore(item, None, "missing"))
            continue
        matches = [_best_match(item, response, options.mode == "strict") for response in responses]
        binary = sum(share > 0 for share, _ in matches) / len(matches)
        weighted += sum(share for share, _ in matches) / len(matches)
        scores.append(ItemScore(item, binary, prediction=matches[-1][1]))
    outcome = summarize(scores, "SEM-B(lite)", 100.0)
    weighted_mean = 100.0 * weighted / len(scores) if scores else None
    return replace(outcome, scores={"SEM-B(lite)": outcome.score, "SEM-W(lite)": weighted_mean})


def _best_match(item: Item, response: str, strict: bool) -> tuple[float, str | None]:
    """Returns (votes of the matching answer / votes of the most frequent one, the answer), or (0, None)."""
    annotation = item.annotation
    if not isinstance(annotation, Annotation):
        raise TypeError(f"item {item.id} has no annotation: score_short is for the items of read_short")
    text = clean_response(response, item.prompt)
    if not text:
        return 0.0, None
    most = annotation.votes[0].count
    for votes in annotation.votes:
        local = [] if annotation.language == "English" else [(answer, annotation.language) for answer in votes.local]
        for answer, language in (*local, *((answer, "English") for answer in votes.english)):
            if contains_answer(answer, text, language, strict=strict):
                return votes.count / most, answer
    return 0.0, None


def clean_response(response: str, prompt: str) -> str:
    """Returns a response as the authors' script compares it: lower case, without echoes of the prompt and 'Answer:'."""
    text = response.replace(prompt, "") if prompt else response
    text, prompt = text.translate(_WIDE).lower(), prompt.translate(_WIDE).lower()
    label = re.match(r"(\w+:)\s", text)
    if label and label[1].removesuffix(":") in prompt:
        text = text.replace(label[1], "")
    return text.strip().strip(".")


def split_words(text: str) -> list[str]:
    """Returns the words between white space and punctuation."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.casefold())


def split_bigrams(text: str) -> list[str]:
    """Returns pairs of neighbouring letters, for scripts without spaces; a single letter stands for itself."""
    bigrams = []
    for run in re.findall(r"[^\W_]+", text.casefold()):
        bigrams += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
    return bigrams


def split_arabic(text: str) -> list[str]:
    """Returns words without vowel signs and article, with one form each of alef, ya and ta marbuta."""
    plain = _TASHKEEL.sub("", text).translate(_ALEF)
    return [word.removeprefix("ال") if len(word) > 4 else word for word in split_words(plain)]


# How texts are split into the words that are compared, by language; other languages use `split_words`. A lemmatizer can
# be put here.
TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"Chinese": split_bigrams, "Arabic": split_arabic}


def contains_answer(answer: str, response: str, language: str, *, strict: bool = False) -> bool:
    """Returns whether a (cleaned) response contains an answer, as a part of its text or word by word.

    As in the authors' script, the part may lie within a word ('tea' in 'steak'). With `strict` it must consist of
    complete words, in scripts with spaces, and an answer of punctuation alone, which that script finds in every
    response, is never contained.
    """
    lower = answer.lower()
    complete_words = strict and language not in ("Chinese", "Japanese")
    for spelling in (lower, lower.replace("-", " "), lower.replace(" ", "-")):
        if complete_words and spelling:
            if re.search(rf"(?<!\w){re.escape(spelling)}(?!\w)", response):
                return True
        elif spelling in response and (spelling or not strict):
            return True
    split = TOKENIZERS.get(language, split_words)
    answer_words, response_words = ([_fold_accents(word) for word in split(text)] for text in (lower, response))
    answer_words = [word for word in answer_words if word not in string.punctuation]
    return set(answer_words) <= set(response_words) and (bool(answer_words) or not strict)


def _fold_accents(word: str) -> str:
    return unicodedata.normalize("NFD", word).replace("\u0301", "").lower()


# --- multiple-choice questions ---------------------------------------------------------------------------------------

_CHOICE_COLUMNS = ("MCQID", "prompt", "choices", "answer_idx", "ID", "country")


def read_choices(path: str, options: Options) -> TaskItems:
    """Reads mc_questions_file*.csv (a file, a folder of them) or the hub's rows. The unit of an item is its ID."""
    items = []
    for row, values in open_table(path, {column: (column,) for column in _CHOICE_COLUMNS}, options.columns):
        require_fields(row, values, "MCQID", "prompt", "choices", "answer_idx")
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


def score_choice_questions(task_items: TaskItems, matched: MatchedAnswers, options: Options) -> Outcome:
    """Returns acc over items, and the mean over questions (IDs), each of which is asked with several sets of options.

    An answer is read by the official parser, or in mode strict by the robust one.
    """

    def parse(item: Item, text: str, options: Options) -> str | None:
        return blend_choice(text, dict(zip(item.letters, item.wordings)), robust=options.mode == "strict")

    outcome = score_choices(task_items, matched, options, parse)
    values: dict[str, list[float]] = {}
    for score in outcome.item_scores:
        values.setdefault(str(score.item.unit), []).append(score.value or 0.0)
    mean = sum(sum(group) / len(group) for group in values.values()) / len(values) if values else None
    return replace(outcome, scores={"acc": outcome.score, "acc per ID (macro)": mean})
