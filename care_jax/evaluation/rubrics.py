"""Rubrics, the prompts of a judge by category: this library's own in `judge_prompts/`, or the published files.

CARE's repository has three files of prompts. The content of two of them is swapped: `norms_commonsense.txt` is about a
literary work, `literacy.txt` about a golden answer and real-world context. `by_content` gives every category the text
that is about it; `as_published` follows the names of the files, as the published script does.
"""

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from care_jax.data.cultures import category_id
from care_jax.errors import UserError
from care_jax.evaluation.tasks import parsing

Criteria = Literal["by_content", "as_published"]
FILES = ("entities_opinion", "norms_commonsense", "literacy")


@dataclass(frozen=True, slots=True)
class Rubric:
    """The prompt of a judge, and how to read the score in its reply.

    template: holds {question}, {answer} (the reference) and {response}. labels: words and their scores; None if the
    judge gives a rating from `low` to `high`.
    """

    name: str
    template: str
    low: float = 1.0
    high: float = 10.0
    labels: Mapping[str, float] | None = None

    def prompt(self, question: str, answer: str, response: str) -> str:
        """Returns the text for the judge. All fields are filled in one pass, so braces inside them do no harm."""
        values = {"question": question, "answer": answer, "response": response}
        return re.sub(r"\{(question|answer|response)\}", lambda match: values[match[1]], self.template)

    def parse(self, text: str) -> float | None:
        """Returns the score in the text of a judgement, or None."""
        if self.labels is None:
            return parsing.rating(text, self.low, self.high)
        names = sorted(self.labels, key=len, reverse=True)
        labels = re.findall(rf"(?<![A-Z_])({'|'.join(map(re.escape, names))})(?![A-Z_])", text)
        return self.labels[labels[-1]] if labels else None

    def rates(self, text: str) -> bool:
        """Returns whether the text of a judgement holds a score."""
        return self.parse(text) is not None


def _built_in(name: str, low: float = 1.0, high: float = 10.0, labels: Mapping[str, float] | None = None) -> Rubric:
    template = pathlib.Path(__file__).with_name("judge_prompts") / f"{name}.txt"
    return Rubric(name, template.read_text(encoding="utf-8"), low, high, labels)


_LABELS = {"CORRECT": 1.0, "CORRECT_BUT_WRONG_LANGUAGE": 0.0, "INCORRECT": 0.0, "NOT_ATTEMPTED": 0.0}
BUILT_IN: dict[str, Rubric] = {name: _built_in(name) for name in FILES} | {
    "globe": _built_in("globe", 1.0, 7.0),
    "care_pro": _built_in("care_pro", 0.0, 1.0, _LABELS),
}
# category -> the rubric whose text is about it
_BY_CONTENT = {
    "entities": "entities_opinion",
    "opinion": "entities_opinion",
    "norms": "norms_commonsense",
    "commonsense": "norms_commonsense",
    "literacy": "literacy",
}
_SWAPPED = {"norms_commonsense": "literacy", "literacy": "norms_commonsense"}


def load_rubrics(folder: str | None, criteria: Criteria) -> dict[str, Rubric]:
    """Returns this library's rubrics; with a folder, those of its files entities_opinion.txt, literacy.txt and so on.

    The keys name what a text is used for. So `by_content` puts the published norms_commonsense.txt
    under `literacy`, and `as_published` puts this library's text about literature under `norms_commonsense`.
    """
    rubrics = BUILT_IN | ({} if folder is None else {name: _read_published(folder, name) for name in FILES})
    if criteria == ("as_published" if folder is None else "by_content"):
        return {name: rubrics[_SWAPPED.get(name, name)] for name in rubrics}
    return rubrics


def _read_published(folder: str, name: str) -> Rubric:
    path = pathlib.Path(folder).expanduser() / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--rubrics: cannot read {path}: {error}") from None
    missing = [field for field in ("{question}", "{response}") if field not in text]
    if missing:
        raise UserError(f"--rubrics: {path} has no {' and no '.join(missing)}")
    return Rubric(f"{name}.txt", text)


def choose_rubric(rubrics: Mapping[str, Rubric], category: str | None, name: str | None = None) -> Rubric:
    """Returns the named rubric, or else that of the category (entities_opinion if it has none)."""
    if name is None:
        name = _BY_CONTENT.get(category_id(category) if category else "", "entities_opinion")
    elif name not in rubrics:
        raise UserError(f"rubric: found {name!r}, expected one of {', '.join(rubrics)}")
    return rubrics[name]
