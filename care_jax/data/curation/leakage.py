"""Finds training questions that are also in an evaluation set: the same question, or a near copy.

Near: the character 3-grams of the two (letters and digits only, casefolded) have a Jaccard similarity of at least 0.8.
Questions from one template ('What is Hebei known for?', 'What is Henan known for?') are as similar and yet different.
So two questions that differ only in the things they name do not count, unless they have the same reference answer.
"""

import difflib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from care_jax.data.questions import Question, is_ids, is_messages, normalise, plain_text
from care_jax.data.rows.row import shorten
from care_jax.textfiles import JsonObject

_NEAR = 0.8  # the smallest similarity of near questions
# A word; in scripts without spaces between words, a character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training question that is also in an evaluation set.

    kind: same or near. similarity: Jaccard similarity of the 3-grams.
    """

    kind: str
    similarity: float
    question: str
    against: str
    culture: str | None
    file: str
    against_file: str


def check(train: Sequence[Question], against: Sequence[Question]) -> list[Overlap]:
    """Returns the training questions that `against` holds too, each with its nearest; never across two cultures."""
    index = _Index(against)
    overlaps = []
    for question in train:
        same = index.same(question)
        similarity, other = (1.0, same) if same is not None else index.nearest(question)
        if other is not None:
            texts = plain_text(question.prompt), plain_text(other.prompt)
            kind = "near" if same is None else "same"
            overlaps.append(Overlap(kind, round(similarity, 3), *texts, question.culture, question.file, other.file))
    return overlaps


class _Index:
    """Finds questions by their text and by their 3-grams."""

    def __init__(self, questions: Sequence[Question]):
        self._questions = questions
        self._by_text: dict[str, list[int]] = defaultdict(list)  # text -> questions
        self._by_gram: dict[str, list[int]] = defaultdict(list)  # 3-gram -> texts
        self._grams: list[frozenset[str]] = []  # of each text
        self._owners: list[int] = []  # the question of each text
        for number, question in enumerate(questions):
            for text in _texts(question):
                self._by_text[text].append(number)
                self._owners.append(number)
                self._grams.append(frozenset() if is_ids(question.prompt) else _grams(text))
                for gram in self._grams[-1]:
                    self._by_gram[gram].append(len(self._grams) - 1)

    def same(self, question: Question) -> Question | None:
        """Returns the first question with the same text."""
        numbers = (number for text in _texts(question) for number in self._by_text.get(text, ()))
        candidates = (self._questions[number] for number in numbers)
        return next((other for other in candidates if _same_culture(question, other)), None)

    def nearest(self, question: Question) -> tuple[float, Question | None]:
        """Returns the similarity and the most similar question; (0, None) if none is near."""
        near: list[tuple[float, int]] = []  # (similarity, -number of the question)
        for text in () if is_ids(question.prompt) else _texts(question):
            grams = _grams(text)
            # A near text shares at least one of the rarest grams: only these are looked up.
            rarest = sorted(grams, key=lambda gram: len(self._by_gram.get(gram, ())))
            rarest = rarest[: len(grams) - math.ceil(_NEAR * len(grams)) + 1]
            for candidate in {candidate for gram in rarest for candidate in self._by_gram.get(gram, ())}:
                similarity = _jaccard(grams, self._grams[candidate])
                other = self._questions[self._owners[candidate]]
                if similarity >= _NEAR and _same_culture(question, other) and not _template(question, other):
                    near.append((similarity, -self._owners[candidate]))
        similarity, number = max(near, default=(0.0, None))
        return similarity, None if number is None else self._questions[-number]


def _texts(question: Question) -> list[str]:
    """Returns the texts to compare: the question in its own language, the prompt, and its last turn, each once."""
    texts = [question.key.split("\t", 1)[-1], normalise(plain_text(question.prompt))]
    if is_messages(question.prompt):
        texts.append(normalise(question.prompt[-1]["content"]))
    return list(dict.fromkeys(texts))


def _grams(text: str) -> frozenset[str]:
    letters = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
    return frozenset(letters[i : i + 3] for i in range(max(1, len(letters) - 2)))


def _same_culture(a: Question, b: Question) -> bool:
    return a.culture is None or b.culture is None or a.culture == b.culture


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def _template(a: Question, b: Question) -> bool:
    """Returns whether the two only share a template: one names things where the other names different things."""
    if a.reference and b.reference and _jaccard(_grams(a.reference), _grams(b.reference)) >= 0.5:
        return False
    words, others = (_WORD.findall(normalise(plain_text(question.prompt))) for question in (a, b))
    steps = difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
    changed = [step for step in steps if step[0] != "equal"]
    if not changed or len(changed) > 3 or any(step[0] != "replace" for step in changed):
        return False
    return all(
        difflib.SequenceMatcher(None, "".join(words[i:j]), "".join(others[k:m])).ratio() < 0.6
        for _, i, j, k, m in changed
    )


def check_json(overlaps: Sequence[Overlap]) -> JsonObject:
    """Returns the object of `data check --json`: the counts `same` and `near`, and `overlaps`, an entry per pair."""
    kinds = Counter(overlap.kind for overlap in overlaps)
    return {"same": kinds["same"], "near": kinds["near"], "overlaps": [asdict(overlap) for overlap in overlaps]}


def check_text(overlaps: Sequence[Overlap], examples: int = 10) -> str:
    """Returns the counts and the first pairs as text."""
    if not overlaps:
        return "no training question is in the evaluation data\n"
    near = sum(overlap.kind == "near" for overlap in overlaps)
    counts = f"{len(overlaps) - near} the same, {near} near"
    lines = [f"{len(overlaps)} training questions are in the evaluation data: {counts}"]
    for overlap in overlaps[:examples]:
        pair = shorten(overlap.question, 60)
        if overlap.kind == "near":
            pair += f"  ~ {overlap.similarity:.2f} ~  {shorten(overlap.against, 60)}"
        lines.append(f"  {overlap.kind}: {pair}")
    if len(overlaps) > examples:
        lines.append(f"  ... and {len(overlaps) - examples} more")
    return "\n".join(lines) + "\n"
