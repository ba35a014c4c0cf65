"""Rubrics, the prompts of a judge by category: in this library's words, or read from the published files.

CARE's repository has three files of prompts. The content of two of them is swapped: `norms_commonsense.txt` is about a
literary work, `literacy.txt` about a golden answer and real-world context. `by_content` gives every category the text
that is about it; `as_published` follows the names of the files, as the published script does.
"""

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from care_jax.data.questions import category_id
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


_END = """\
Write a short comment on each criterion first. Then give one whole number from {low} (poor) to {high} (excellent), on \
a last line of exactly this form:
Rating: [[number]]

## Question:
{question}

## Reference answer:
{answer}

## Answer to be rated:
{response}
"""


def _rating_rubric(name: str, head: str, low: int = 1, high: int = 10) -> Rubric:
    end = _END.replace("{low}", str(low)).replace("{high}", str(high))
    return Rubric(name, f"{head}\n{end}", float(low), float(high))


BUILT_IN: dict[str, Rubric] = {
    rubric.name: rubric
    for rubric in (
        _rating_rubric(
            "entities_opinion",
            """\
You rate how well an answer serves somebody who asks about a culture, in whatever language the question is asked. You \
know that culture well, and you use the reference answer as one good answer, not as the only one.
- Correct: what the answer says about people, places, works, dishes, customs or views is true of this culture today.
- Thorough: it goes beyond a phrase, and says what somebody from there would find worth saying.
- To the point: it answers this question, and nothing else.""",
        ),
        _rating_rubric(
            "norms_commonsense",
            """\
You rate, strictly, whether an answer knows how people of a culture behave and what they take for granted. Compare it \
with the reference answer and with real life there; what is usual elsewhere does not count.
- Correct: it agrees with the reference answer and with the culture's actual customs and expectations.
- Complete: the points that matter in the reference answer are there.
- To the point: it answers this question, without general talk.""",
        ),
        _rating_rubric(
            "literacy",
            """\
You rate an answer about a culture's literature: works, authors, sayings, allusions and what they mean to readers there.
- Correct: titles, authors, wordings and facts agree with the reference answer and with the works themselves.
- Reading: it understands the work or saying as readers of that culture do.
- Grounded: what it claims is borne out by the text it speaks of.
- To the point: it answers this question, and nothing else.""",
        ),
        _rating_rubric(
            "globe",
            """\
You rate where an answer stands on the cultural dimension that the question is about, from 1 (very low) to 7 (very \
high). Rate the attitude that it expresses, not its style. The reference, if any, says what low and high mean.""",
            1,
            7,
        ),
        Rubric(
            "care_pro",
            """\
Compare an answer with the reference, and say which of these it is:
CORRECT: it agrees with the reference, and is in the question's language.
CORRECT_BUT_WRONG_LANGUAGE: it agrees with the reference, in another language than the question's.
INCORRECT: it contradicts the reference, or leaves out what was asked for.
NOT_ATTEMPTED: it gives no answer.
End with the one word alone.

## Question:
{question}

## Reference:
{answer}

## Answer:
{response}
""",
            0.0,
            1.0,
            {"CORRECT": 1.0, "CORRECT_BUT_WRONG_LANGUAGE": 0.0, "INCORRECT": 0.0, "NOT_ATTEMPTED": 0.0},
        ),
    )
}
# The rubric that is about a category.
_BY_CONTENT = {
    "entities": "entities_opinion",
    "opinion": "entities_opinion",
    "norms": "norms_commonsense",
    "commonsense": "norms_commonsense",
    "literacy": "literacy",
}
_SWAPPED = {"norms_commonsense": "literacy", "literacy": "norms_commonsense"}


@dataclass(frozen=True, slots=True)
class Rubrics:
    """The rubrics by name. source: `built in`, or the folder of the published files."""

    rubrics: Mapping[str, Rubric]
    criteria: Criteria
    source: str

    def of(self, category: str | None, named: str | None = None) -> Rubric:
        """Returns the named rubric, or else that of the category (entities_opinion if it has none)."""
        if named is not None:
            if named not in self.rubrics:
                raise UserError(f"rubric: found {named!r}, expected one of {', '.join(self.rubrics)}")
            return self.rubrics[named]
        return self.rubrics[_BY_CONTENT.get(category_id(category) if category else "", "entities_opinion")]


def load_rubrics(folder: str | None, criteria: Criteria) -> Rubrics:
    """Returns this library's rubrics; with a folder, those of its files entities_opinion.txt, literacy.txt and so on.

    The keys of `Rubrics.rubrics` name what a text is used for. So `by_content` puts the published norms_commonsense.txt
    under `literacy`, and `as_published` puts this library's text about literature under `norms_commonsense`.
    """
    if folder is None:
        texts = dict(BUILT_IN)
        swap = criteria == "as_published"
    else:
        texts = BUILT_IN | {name: _read_published(pathlib.Path(folder), name) for name in FILES}
        swap = criteria == "by_content"
    by_use = {name: texts[_SWAPPED.get(name, name)] if swap else rubric for name, rubric in texts.items()}
    return Rubrics(by_use, criteria, folder or "built in")


def _read_published(folder: pathlib.Path, name: str) -> Rubric:
    path = folder.expanduser() / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--rubrics: cannot read {path}: {error}") from None
    missing = [field for field in ("{question}", "{response}") if field not in text]
    if missing:
        raise UserError(f"--rubrics: {path} has no {' and no '.join(missing)}")
    return Rubric(f"{name}.txt", text)
