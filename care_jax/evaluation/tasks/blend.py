"""BLEnD (Myung et al. 2024): short answers against those of people of a country, and its multiple-choice questions.

Reads the files of the authors' repository (data/annotations, questions, prompts, mc_data) and the hub's lists. The
scorer follows evaluation/exact_match.py but for its lemmatisers, a dozen heavy packages: words are compared as
`TOKENIZERS` cut them, and the metrics are labelled (lite).
"""

import csv
import json
import pathlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from care_jax.data.questions import culture_id
from care_jax.data.readers.blend import (
    FILES,
    Entry,
    Votes,
    country_language,
    country_of_file,
    exclusion,
    open_annotations,
)
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.row import shorten
from care_jax.errors import UserError, nearest
from care_jax.evaluation.answers.responses import Matched
from care_jax.evaluation.items import Item, Options, Outcome, Scored, TaskItems, limited, summarize
from care_jax.evaluation.language import detect
from care_jax.evaluation.tasks.parsing import blend_choice

OFFICIAL_PROMPT = "inst-4"
# Where no file of prompts lies beside the data.
_OWN_PROMPT = "Give one short answer to this question, and nothing else.\n\nQuestion: {q}\nAnswer:"


@dataclass(frozen=True, slots=True)
class Annotated:
    """The answers of a country's people. language: of the local answers. votes: the most frequent first."""

    language: str
    votes: tuple[Votes, ...]


# --- reading ---------------------------------------------------------------------------------------------------------


def read_short(path: str, options: Options) -> TaskItems:
    """Items of `{Country}_data*.json`, one file, a folder of them, or the hub's rows; prompts and topics beside them.

    Excluded, as by the authors: unanswerable (no-answer and not-applicable together at least 3), unknown (idk at least
    5), and items without an answer.
    """
    place = pathlib.Path(path).expanduser()
    items: list[Item] = []
    excluded: Counter[str] = Counter()
    notes: list[str] = []
    if place.is_dir():
        files = sorted(file for file in place.rglob("*_data*.json") if file.is_file() and re.search(FILES, file.name))
        if not files:
            raise UserError(f"{path}: no file named COUNTRY_data.json in this folder")
    else:
        files = [place]
    for file in files:
        country = country_of_file(file)
        prompts = _prompts(file, country, options, notes)
        topics = {id_: topic for id_, (_, _, topic) in _beside(file, country).items()}
        for entry in open_annotations(str(file) if file.exists() else path):
            where = str(entry.values.get("country", country))
            name = entry.id if len(files) == 1 and "country" not in entry.values else f"{where}:{entry.id}"
            item = _short_item(entry, name, where, prompts, topics, options)
            reason = exclusion(entry.values["idks"]) or (None if entry.votes else "no_annotations")
            if reason:
                excluded[reason] += 1
            else:
                items.append(item)
    return TaskItems(limited(items, options, path), excluded, tuple(dict.fromkeys(notes)))


def _short_item(
    entry: Entry, name: str, country: str, prompts: str, topics: Mapping[str, str], options: Options
) -> Item:
    known = country_language(country)
    language = "English" if known is None else known.name
    english = options.query_language == "english"
    translated = entry.values.get("translated")
    if english and not str(translated or "").strip():
        raise UserError(f"{entry.place}: --query-language english, but it has no en_question")
    question = str(translated if english else entry.values["question"])
    groups = {"country": country, "culture": culture_id(country), "language": language}
    if entry.id in topics:
        groups["topic"] = topics[entry.id]
    return Item(
        id=name,
        question=question,
        prompt=prompts.replace("{q}", question),
        groups=groups,
        language="English" if english else language,
        fields={"country": country, "question_en": translated},
        secret=Annotated(language, entry.votes),
    )


def _near(file: pathlib.Path, pattern: str) -> pathlib.Path | None:
    folders = [file.parent, *(file.parent.parent / name for name in ("prompts", "questions"))]
    return next((found for folder in folders for found in sorted(folder.glob(pattern))), None)


def _prompts(file: pathlib.Path, country: str, options: Options, notes: list[str]) -> str:
    """The template with {q}: of the official file beside the data, in the language of the query, or our own."""
    found = _near(file, f"{country}_prompts*.csv")
    if found is None:
        if options.prompt is not None:
            raise UserError(f"--prompt: no {country}_prompts.csv beside {file}")
        notes.append(f"{country}: no file of official prompts beside the data; asked in our own words, in English")
        return _OWN_PROMPT
    wanted = options.prompt or OFFICIAL_PROMPT
    rows = {row["id"]: row for row in _csv(found)}
    if wanted not in rows:
        raise UserError(f"--prompt: {found} has no {wanted!r}{nearest(wanted, list(rows))}; it has {', '.join(rows)}")
    return rows[wanted]["English" if options.query_language == "english" else "Translation"]


def _csv(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _beside(file: pathlib.Path, country: str) -> dict[str, tuple[str, str, str]]:
    found = _near(file, f"{country}_questions*.csv")
    return {} if found is None else read_questions(found)


def read_questions(path: str | pathlib.Path) -> dict[str, tuple[str, str, str]]:
    """id -> (local question, English question, topic) of `{Country}_questions.csv`.

    Its header promises English in `Question`, but in most countries' files that column is the local one: the file is
    decided by the share of English in each column, not by their names.
    """
    rows = _csv(pathlib.Path(path))
    if not rows or not {"ID", "Question", "Translation"} <= set(rows[0]):
        raise UserError(f"{path}: expected the columns ID, Topic, Source, Question, Translation")

    def english(column: str) -> int:
        return sum(detect(row[column]) in ("en", "latin") for row in rows) + sum(
            detect(row[column]) == "en" for row in rows
        )

    local, translated = "Question", "Translation"
    if english("Question") > english("Translation"):
        local, translated = translated, local
    return {row["ID"]: (row[local], row[translated], row.get("Topic", "")) for row in rows}


# --- scoring short answers -------------------------------------------------------------------------------------------

_WIDE = str.maketrans({"：": ":", "、": ",", "，": ",", "。": "."})
_TASHKEEL = re.compile(r"[\u064b-\u065f\u0670\u0640]")
_ALEF = str.maketrans({"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ة": "ه"})


def cleaned(response: str, prompt: str) -> str:
    """A response as the authors' script compares it: echo of the prompt and a leading 'Answer:' off, lower case."""
    text = response.replace(prompt, "") if prompt else response
    text, asked = text.translate(_WIDE).lower(), prompt.translate(_WIDE).lower()
    found = re.match(r"(\w+:)\s", text)
    if found and found[1].removesuffix(":") in asked:
        text = text.replace(found[1], "")
    return text.strip().strip(".")


def words(text: str) -> list[str]:
    """Words between white space and punctuation."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.casefold())


def bigrams(text: str) -> list[str]:
    """Pairs of neighbouring letters, for scripts that write no spaces; a lone letter is itself."""
    found = []
    for run in re.findall(r"[^\W_]+", text.casefold()):
        found += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
    return found


def arabic(text: str) -> list[str]:
    """Words without vowel signs, with one form of alef, ya and ta marbuta, the article cut off."""
    plain = _TASHKEEL.sub("", text).translate(_ALEF)
    return [word.removeprefix("ال") if len(word) > 4 else word for word in words(plain)]


# How the words of an answer are looked for among those of a response, by language; put a lemmatiser in its place.
TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"Chinese": bigrams, "Arabic": arabic}


def matches(answer: str, response: str, language: str, *, strict: bool = False) -> bool:
    """Whether a (cleaned) response holds an answer, as a piece of its text or word for word.

    As in the authors' script a piece may stand within a word ('tea' in 'steak'); `strict` asks for whole words where
    the script writes spaces, and takes no answer of punctuation alone, which that script finds in any response.
    """
    said = answer.lower()
    spellings = {said, said.replace("-", " "), said.replace(" ", "-")}
    spaced = language not in ("Chinese", "Japanese")
    if not strict:
        if any(one in response for one in spellings):
            return True
    elif any(one and _holds(one, response, spaced) for one in spellings):
        return True
    cut = TOKENIZERS.get(language, words)
    wanted, found = ([_folded(one) for one in cut(text)] for text in (said, response))
    wanted = [one for one in wanted if one not in string.punctuation]
    return set(wanted) <= set(found) and (bool(wanted) or not strict)


def _holds(answer: str, response: str, spaced: bool) -> bool:
    if not spaced:
        return answer in response
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", response) is not None


def _folded(word: str) -> str:
    return unicodedata.normalize("NFD", word).replace("\u0301", "").lower()


def score_short(taken: TaskItems, matched: Matched, options: Options) -> Outcome:
    """SEM-B: 100 x the share of items whose response holds an answer. SEM-W: weighted by that answer's votes.

    Without a response an item counts 0. Of several responses to one item the mean is taken.
    """
    scored = []
    for item in taken.items:
        answers = [one.response for one in matched.answers.get(item.id, []) if one.response is not None]
        if not answers:
            scored.append(Scored(item, None, "missing"))
            continue
        found = [_hit(item, one, options.mode == "strict") for one in answers]
        binary = sum(share > 0 for share, _ in found) / len(found)
        weighted = sum(share for share, _ in found) / len(found)
        scored.append(Scored(item, binary, prediction=found[-1][1], more={"SEM-W(lite)": weighted}))
    outcome = summarize(scored, "SEM-B(lite)", 100.0)
    weighted = sum(one.more.get("SEM-W(lite)", 0.0) for one in scored)
    scores = {
        "SEM-B(lite)": outcome.score,
        "SEM-W(lite)": 100.0 * weighted / len(scored) if scored else None,
    }
    return Outcome(scored, outcome.metric, outcome.score, scores, outcome.by, outcome.by_n)


def _hit(item: Item, response: str, strict: bool) -> tuple[float, str | None]:
    """(votes of the answer found / votes of the commonest, the answer); (0, None) where there is none."""
    said: Annotated = item.secret
    text = cleaned(response, item.prompt)
    if not text:
        return 0.0, None
    most = said.votes[0].count
    for votes in said.votes:
        if said.language != "English":
            for answer in votes.local:
                if matches(answer, text, said.language, strict=strict):
                    return votes.count / most, answer
        for answer in votes.english:
            if matches(answer, text, "English", strict=strict):
                return votes.count / most, answer
    return 0.0, None


# --- multiple choice -------------------------------------------------------------------------------------------------


def read_choices(path: str, options: Options) -> TaskItems:
    """Items of mc_questions_file*.csv (a file, a folder of them) or the hub's rows. `unit`: the question's ID."""
    items = []
    for row in open_rows(path):
        if row.value is None:
            raise UserError(f"{row.place}: {row.problem}")
        value = row.value
        lacking = [key for key in ("MCQID", "prompt", "choices", "answer_idx") if key not in value]
        if lacking:
            raise UserError(f"{row.place}: no {', '.join(lacking)}; its keys are {', '.join(map(str, value))}")
        choices = _choices(value["choices"], row.place)
        right = str(value["answer_idx"]).strip()
        if right not in choices:
            raise UserError(f"{row.place}, answer_idx: found {right!r}, expected one of {', '.join(choices)}")
        country = str(value.get("country", ""))
        items.append(
            Item(
                id=str(value["MCQID"]),
                question=str(value["prompt"]),
                prompt=str(value["prompt"]),
                groups={"country": country, "culture": culture_id(country)} if country else {},
                choices=tuple(choices.values()),
                letters=tuple(choices),
                right=(list(choices).index(right),),
                unit=str(value.get("ID", value["MCQID"])),
                language="English",
                secret=choices,
            )
        )
    return TaskItems(limited(items, options, path))


def _choices(value: Any, place: str) -> dict[str, str]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UserError(f"{place}, choices: not JSON: {error}") from None
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{place}, choices: expected an object of letter and option, found {shorten(found)}")
    return {str(key): str(option) for key, option in found.items() if option is not None}


def choice_of(item: Item, text: str, options: Options) -> str | None:
    """The letter that a free answer chooses, by the official or (mode strict) the robust parser."""
    return blend_choice(text, item.secret, robust=options.mode == "strict")
