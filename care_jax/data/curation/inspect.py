"""What is in a dataset: counts, ratings by source, ties, lengths, scripts, examples; as object, text or picture."""

import pathlib
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from care_jax.data.preferences import PairPolicy, question_pairs
from care_jax.data.questions import Content, Question, Stored, is_ids, plain_text
from care_jax.data.rows.report import Report, merge
from care_jax.data.rows.row import shorten
from care_jax.errors import UserError

_EXAMPLES = 2
_SCRIPTS = (
    "LATIN",
    "ARABIC",
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "CYRILLIC",
    "DEVANAGARI",
    "THAI",
    "GREEK",
    "HEBREW",
)


def inspect(reports: Sequence[Report]) -> dict[str, Any]:
    """`data inspect --json` of several readings together: `rows questions responses dropped ratings by pairs`, as
    data_report.json holds them, then `statistics_of` the questions, `examples` of them, and `rejected`: an entry for
    every row that was dropped, as rejected_rows.jsonl holds them.
    """
    questions = [question for report in reports for question in report.questions]
    return {
        **merge(reports),
        **statistics_of(questions),
        "examples": [_example(question) for question in questions[:_EXAMPLES]],
        "rejected": [entry for report in reports for entry in report.rejected],
    }


def _example(question: Question) -> dict[str, Any]:
    best_first = sorted(question.responses, key=lambda r: -(r.rating or 0))
    return {
        "question": shorten(plain_text(question.prompt), 400),
        "responses": [
            {"rating": r.rating, "source": r.source, "response": shorten(plain_text(r.content), 400)}
            for r in best_first
        ],
    }


def statistics_of(questions: Sequence[Question]) -> dict[str, Any]:
    """More about the questions: responses a question, ratings by source, ties, lengths in characters, scripts.

    ties: pairs of responses of one question with the same rating, of all its pairs. lengths: the mean of the chosen
    and of the rejected over all pairs, in tokens where the data are ids. rating_length: Pearson's
    correlation over responses, None where undefined.
    """
    by_source: dict[str, Counter[float]] = defaultdict(Counter)
    ratings: list[float] = []
    lengths: list[float] = []
    chosen: list[int] = []
    rejected: list[int] = []
    scripts: Counter[str] = Counter()
    ties = pairs = 0
    for question in questions:
        sizes = [_size(r.content) for r in question.responses]
        for size, response in zip(sizes, question.responses):
            if not isinstance(response.content, Stored) and not is_ids(response.content):
                scripts[script(plain_text(response.content))] += 1
            if response.rating is not None:
                by_source[response.source][response.rating] += 1
                ratings.append(response.rating)
                lengths.append(size)
        known = Counter(r.rating for r in question.responses if r.rating is not None)
        ties += sum(n * (n - 1) // 2 for n in known.values())
        pairs += known.total() * (known.total() - 1) // 2
        for i, j in question_pairs(question, PairPolicy("all")):
            chosen.append(sizes[i])
            rejected.append(sizes[j])
    varied = len(set(ratings)) > 1 and len(set(lengths)) > 1
    return {
        "responses_per_question": dict(sorted(Counter(len(q.responses) for q in questions).items())),
        "ratings_by_source": {
            source: {f"{rating:g}": counts[rating] for rating in sorted(counts)}
            for source, counts in sorted(by_source.items())
        },
        "ties": {"ties": ties, "of_pairs": pairs},
        "lengths": {
            "chosen": statistics.fmean(chosen) if chosen else None,
            "rejected": statistics.fmean(rejected) if rejected else None,
        },
        "rating_length": statistics.correlation(ratings, lengths) if varied else None,
        "scripts": dict(scripts.most_common()),
    }


def _size(content: Content) -> int:
    return len(content) if isinstance(content, Stored) or is_ids(content) else len(plain_text(content))


def script(text: str) -> str:
    """The script that most letters of a text are in (latin, arabic, cjk, kana, ...), 'none' without letters.

    Japanese text mixes kana and Chinese characters: a tenth of kana makes it kana.
    """
    counts: Counter[str] = Counter()
    for letter in filter(str.isalpha, text[:2000]):
        name = unicodedata.name(letter, "").split(" ", 1)[0]
        counts["KANA" if name in ("HIRAGANA", "KATAKANA") else name if name in _SCRIPTS else "OTHER"] += 1
    if not counts:
        return "none"
    if counts["KANA"] * 10 >= counts.total():
        return "kana"
    return counts.most_common(1)[0][0].lower()


def inspect_text(reports: Sequence[Report], examples: int = _EXAMPLES) -> str:
    """The same in words, with the first questions as examples."""
    account = merge(reports)
    questions = [question for report in reports for question in report.questions]
    more = statistics_of(questions)
    dropped = {reason: n for reason, n in account["dropped"].items() if n}
    lines = [
        f"rows       {account['rows']:,}",
        f"questions  {account['questions']:,}",
        f"responses  {account['responses']:,}",
        f"dropped    {_counts(dropped) or 'nothing'}",
        f"ratings    {_counts(account['ratings'])}",
    ]
    lines += [f"{name:<10} {_counts(counts)}" for name, counts in account["by"].items()]
    lines.append(f"pairs      {_counts(account['pairs'])}")
    lines.append(f"responses a question  {_counts(more['responses_per_question'])}")
    lines.append(f"ties       {more['ties']['ties']:,} of {more['ties']['of_pairs']:,} pairs of one question")
    if more["lengths"]["chosen"] is not None:
        lengths = more["lengths"]
        lines.append(
            f"length     chosen {lengths['chosen']:.1f}, rejected {lengths['rejected']:.1f} characters (ids: tokens)"
        )
    if more["rating_length"] is not None:
        lines.append(f"rating and length correlate by {more['rating_length']:+.2f}")
    lines.append(f"scripts    {_counts(more['scripts'])}")
    if more["ratings_by_source"]:
        lines.append("ratings by source")
        lines += [f"  {source:<16} {_counts(counts)}" for source, counts in more["ratings_by_source"].items()]
    for question in questions[:examples]:
        lines.append(f"e.g. {shorten(plain_text(question.prompt), 100)}")
        for response in sorted(question.responses, key=lambda r: -(r.rating or 0))[:4]:
            rated = "" if response.rating is None else f"{response.rating:g}"
            lines.append(f"  {rated:>4}  {shorten(plain_text(response.content), 90)}  [{response.source}]")
    return "\n".join(lines) + "\n"


def _counts(counts: dict[Any, int]) -> str:
    return ", ".join(f"{key} {n:,}" for key, n in counts.items())


def inspect_picture(reports: Sequence[Report], path: str | pathlib.Path) -> None:
    """A PNG of the ratings by source and of the responses a question; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("a picture needs matplotlib: pip install matplotlib") from error

    more = statistics_of([question for report in reports for question in report.questions])
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = sorted({float(v) for counts in more["ratings_by_source"].values() for v in counts})
    below = [0] * len(values)
    for source, counts in more["ratings_by_source"].items():
        heights = [counts.get(f"{value:g}", 0) for value in values]
        left.bar([f"{value:g}" for value in values], heights, bottom=below, label=source)
        below = [a + b for a, b in zip(below, heights)]
    left.set(title="ratings by source", xlabel="rating", ylabel="responses")
    if values:
        left.legend(fontsize="small")
    sizes = more["responses_per_question"]
    right.bar([str(size) for size in sizes], list(sizes.values()))
    right.set(title="responses a question", xlabel="responses", ylabel="questions")
    figure.savefig(path)
