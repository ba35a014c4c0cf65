"""What a judge is asked: rubrics by category, in this library's own words or out of the published files.

CARE's repository has three files of prompts. By their content two of their names are swapped: `norms_commonsense.txt`
speaks of a literary work, `literacy.txt` of a golden answer and real-world context. `by_content` gives every category
the text that speaks of it; `as_published` goes by the files' names, as whoever runs the published script does.
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
    """template: with {question}, {answer} (the reference) and {response}. labels: words that stand for a score, in
    place of a rating within low..high."""

    name: str
    template: str
    low: float = 1.0
    high: float = 10.0
    labels: Mapping[str, float] | None = None

    def prompt(self, question: str, answer: str, response: str) -> str:
        """The text for the judge: each field put in once, in one pass, whatever braces the others hold."""
        values = {"question": question, "answer": answer, "response": response}
        return re.sub(r"\{(question|answer|response)\}", lambda found: values[found[1]], self.template)

    def parse(self, text: str) -> float | None:
        """The score that a judgement gives, or None."""
        if self.labels is None:
            return parsing.rating(text, self.low, self.high)
        names = sorted(self.labels, key=len, reverse=True)
        found = re.findall(rf"(?<![A-Z_])({'|'.join(map(re.escape, names))})(?![A-Z_])", text)
        return self.labels[found[-1]] if found else None

    def rates(self, text: str) -> bool:
        """Whether a judgement gives a score."""
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
# Which rubric speaks of a category.
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
    """The rubrics of one judging. source: `built in`, or the folder of the published files."""

    rubrics: Mapping[str, Rubric]
    criteria: Criteria
    source: str

    def of(self, category: str | None, named: str | None = None) -> Rubric:
        """The rubric of a category (entities_opinion where there is none), or the one that a row names."""
        if named is not None:
            if named not in self.rubrics:
                raise UserError(f"rubric: found {named!r}, expected one of {', '.join(self.rubrics)}")
            return self.rubrics[named]
        return self.rubrics[_BY_CONTENT.get(category_id(category) if category else "", "entities_opinion")]


def load_rubrics(folder: str | None, criteria: Criteria) -> Rubrics:
    """This library's rubrics, or with a folder those of its entities_opinion.txt, norms_commonsense.txt, literacy.txt.

    The keys of `Rubrics.rubrics` name what a text is used for. So by content the published norms_commonsense.txt lies
    under `literacy`; as published, this library's text on literature lies under `norms_commonsense`, as theirs does.
    """
    if folder is None:
        texts = dict(BUILT_IN)
        swap = criteria == "as_published"
    else:
        texts = dict(BUILT_IN) | {name: _published(pathlib.Path(folder), name) for name in FILES}
        swap = criteria == "by_content"
    chosen = {name: texts[_SWAPPED.get(name, name)] if swap else rubric for name, rubric in texts.items()}
    return Rubrics(chosen, criteria, folder or "built in")


def _published(folder: pathlib.Path, name: str) -> Rubric:
    path = folder.expanduser() / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--rubrics: cannot read {path}: {error}") from None
    lacking = [field for field in ("{question}", "{response}") if field not in text]
    if lacking:
        raise UserError(f"--rubrics: {path} has no {' and no '.join(lacking)}")
    return Rubric(f"{name}.txt", text)
