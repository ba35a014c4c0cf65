"""Whether training questions stand in an evaluation set: the same question, or a near copy of one.

Near: the character 3-grams of the two (letters and digits only, casefolded) have a Jaccard similarity of at least 0.8.
Questions made from one template ('What is Hebei known for?', 'What is Henan known for?') are as near as that and yet
different questions, so a pair that differs only by one thing named for another is left out, unless both have the same
reference answer.
"""

import difflib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from care_jax.data.questions import Question, is_ids, is_messages, normalise, plain_text
from care_jax.data.rows.row import shorten

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training question that an evaluation set holds too. kind: same or near; similarity: of the 3-grams."""

    kind: str
    similarity: float
    question: str
    against: str
    culture: str | None
    file: str
    against_file: str


def check(train: Sequence[Question], against: Sequence[Question], threshold: float = 0.8) -> list[Overlap]:
    """The training questions that `against` holds too, each with its nearest; not across two cultures."""
    exact: dict[str, list[int]] = defaultdict(list)
    postings: dict[str, list[int]] = defaultdict(list)
    grams: list[frozenset[str]] = []
    owner: list[int] = []
    for index, question in enumerate(against):
        for text in _texts(question):
            exact[text].append(index)
            owner.append(index)
            grams.append(frozenset() if is_ids(question.prompt) else _grams(text))
            for gram in grams[-1]:
                postings[gram].append(len(grams) - 1)
    found = []
    for question in train:
        same = [i for text in _texts(question) for i in exact.get(text, ()) if _one_culture(question, against[i])]
        if same:
            found.append(_overlap("same", 1.0, question, against[same[0]]))
            continue
        near = [] if is_ids(question.prompt) else _near(question, against, postings, grams, owner, threshold)
        if near:
            similarity, index = max(near, key=lambda pair: (pair[0], -pair[1]))
            found.append(_overlap("near", similarity, question, against[index]))
    return found


def _near(
    question: Question,
    against: Sequence[Question],
    postings: dict[str, list[int]],
    grams: list[frozenset[str]],
    owner: list[int],
    threshold: float,
) -> list[tuple[float, int]]:
    near = []
    for text in _texts(question):
        own = _grams(text)
        # What is as near as the threshold shares one of the rarest grams at least: looking only at those is enough.
        rarest = sorted(own, key=lambda gram: len(postings.get(gram, ())))
        rarest = rarest[: len(own) - math.ceil(threshold * len(own)) + 1]
        for place in {place for gram in rarest for place in postings.get(gram, ())}:
            similarity = _jaccard(own, grams[place])
            other = against[owner[place]]
            if similarity >= threshold and _one_culture(question, other) and not _template(question, other):
                near.append((similarity, owner[place]))
    return near


def _texts(question: Question) -> list[str]:
    """What is compared: the question in its own language, as it is asked, and its last turn, each once."""
    texts = [question.key.split("\t", 1)[-1], normalise(plain_text(question.prompt))]
    if is_messages(question.prompt):
        texts.append(normalise(question.prompt[-1]["content"]))
    return list(dict.fromkeys(texts))


def _grams(text: str) -> frozenset[str]:
    letters = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
    return frozenset(letters[i : i + 3] for i in range(max(1, len(letters) - 2)))


def _one_culture(a: Question, b: Question) -> bool:
    return a.culture is None or b.culture is None or a.culture == b.culture


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def _template(a: Question, b: Question) -> bool:
    """Whether the two merely share a template: things named in one stand where unlike things stand in the other."""
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


def _overlap(kind: str, similarity: float, question: Question, other: Question) -> Overlap:
    asked, there = (plain_text(q.prompt) for q in (question, other))
    return Overlap(kind, round(similarity, 3), asked, there, question.culture, question.file, other.file)


def check_json(overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """`same`, `near` (counts) and `overlaps` (each pair), for `data check --json`."""
    kinds = Counter(overlap.kind for overlap in overlaps)
    return {"same": kinds["same"], "near": kinds["near"], "overlaps": [asdict(overlap) for overlap in overlaps]}


def check_text(overlaps: Sequence[Overlap], examples: int = 10) -> str:
    """What was found, in words: the counts, and the first pairs."""
    if not overlaps:
        return "no question of one stands in the other\n"
    kinds = Counter(overlap.kind for overlap in overlaps)
    counts = f"{kinds['same']} the same, {kinds['near']} near"
    lines = [f"{len(overlaps)} training questions stand in the evaluation data: {counts}"]
    for overlap in overlaps[:examples]:
        pair = shorten(overlap.question, 60)
        if overlap.kind == "near":
            pair += f"  ~ {overlap.similarity:.2f} ~  {shorten(overlap.against, 60)}"
        lines.append(f"  {overlap.kind}: {pair}")
    if len(overlaps) > examples:
        lines.append(f"  ... and {len(overlaps) - examples} more")
    return "\n".join(lines) + "\n"
