"""What is in a dataset: counts, ratings by source, ties, lengths, scripts, examples; as an object, text or picture."""

import pathlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from care_jax.data.preferences import PairPolicy, question_pairs
from care_jax.data.questions import Question, Response, Stored, is_ids, plain_text
from care_jax.data.rows.report import Report
from care_jax.data.rows.row import shorten
from care_jax.data.scripts import count_scripts, main_script
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject

_EXAMPLES = 2


def inspect(report: Report) -> JsonObject:
    """Returns the object of `data inspect --json`.

    It holds the keys of data_report.json, those of `statistics_of`, `examples`, and `rejected`: an entry per dropped
    row, as rejected_rows.jsonl holds them.
    """
    return {
        **report.to_json(),
        **statistics_of(report.questions),
        "examples": [_example(question) for question in report.questions[:_EXAMPLES]],
        "rejected": report.rejected,
    }


def _best_first(question: Question) -> list[Response]:
    return sorted(question.responses, key=lambda response: -(response.rating or 0))


def _example(question: Question) -> JsonObject:
    return {
        "question": shorten(plain_text(question.prompt), 400),
        "responses": [
            {"rating": r.rating, "source": r.source, "response": shorten(plain_text(r.content), 400)}
            for r in _best_first(question)
        ],
    }


def statistics_of(questions: Sequence[Question]) -> JsonObject:
    """Returns responses per question, ratings by source, ties, lengths and scripts.

    ties: pairs of responses to one question that have the same rating, and the number of all pairs. lengths: the means
    over all pairs of the chosen and of the rejected response, in characters, or in tokens if the data are ids.
    rating_length: Pearson's correlation over responses, None if it is undefined.
    """
    by_source: dict[str, Counter[float]] = defaultdict(Counter)
    rated: list[tuple[float, int]] = []  # (rating, length)
    pair_lengths: dict[str, list[int]] = {"chosen": [], "rejected": []}
    scripts: Counter[str] = Counter()
    ties = pairs = 0
    for question in questions:
        lengths = []
        for response in question.responses:
            content = response.content
            if not isinstance(content, Stored) and not is_ids(content):
                content = plain_text(content)
            lengths.append(len(content))
            if isinstance(content, str):
                scripts[script(content)] += 1
            if response.rating is not None:
                by_source[response.source][response.rating] += 1
                rated.append((response.rating, len(content)))
        counts = Counter(r.rating for r in question.responses if r.rating is not None)
        ties += sum(n * (n - 1) // 2 for n in counts.values())
        pairs += counts.total() * (counts.total() - 1) // 2
        for chosen, rejected in question_pairs(question, PairPolicy("all")):
            pair_lengths["chosen"].append(lengths[chosen])
            pair_lengths["rejected"].append(lengths[rejected])
    return {
        "responses_per_question": dict(sorted(Counter(len(q.responses) for q in questions).items())),
        "ratings_by_source": {
            source: {f"{rating:g}": counts[rating] for rating in sorted(counts)}
            for source, counts in sorted(by_source.items())
        },
        "ties": {"ties": ties, "of_pairs": pairs},
        "lengths": {name: statistics.fmean(lengths) if lengths else None for name, lengths in pair_lengths.items()},
        "rating_length": _correlation(rated),
        "scripts": dict(scripts.most_common()),
    }


def _correlation(rated: Sequence[tuple[float, int]]) -> float | None:
    ratings, lengths = [float(rating) for rating, _ in rated], [float(length) for _, length in rated]
    return statistics.correlation(ratings, lengths) if len(set(ratings)) > 1 and len(set(lengths)) > 1 else None


def script(text: str) -> str:
    """Returns the script of most letters in the first 2000 characters; see `main_script`."""
    return main_script(count_scripts(text[:2000]))


def inspect_text(report: Report) -> str:
    """Returns the same as text, without the rejected rows."""
    account, stats = report.to_json(), statistics_of(report.questions)
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
    lines.append(f"responses per question  {_counts(stats['responses_per_question'])}")
    lines.append(f"ties       {stats['ties']['ties']:,} of {stats['ties']['of_pairs']:,} pairs of one question")
    chosen, rejected = stats["lengths"].values()
    if chosen is not None:
        lines.append(f"length     chosen {chosen:.1f}, rejected {rejected:.1f} characters (ids: tokens)")
    if stats["rating_length"] is not None:
        lines.append(f"rating and length correlate by {stats['rating_length']:+.2f}")
    lines.append(f"scripts    {_counts(stats['scripts'])}")
    if stats["ratings_by_source"]:
        lines.append("ratings by source")
        lines += [f"  {source:<16} {_counts(counts)}" for source, counts in stats["ratings_by_source"].items()]
    for question in report.questions[:_EXAMPLES]:
        lines.append(f"e.g. {shorten(plain_text(question.prompt), 100)}")
        for response in _best_first(question)[:4]:
            rated = "" if response.rating is None else f"{response.rating:g}"
            lines.append(f"  {rated:>4}  {shorten(plain_text(response.content), 90)}  [{response.source}]")
    return "\n".join(lines) + "\n"


def _counts(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{key} {n:,}" for key, n in counts.items())


def inspect_picture(report: Report, path: str | pathlib.Path) -> None:
    """Draws the ratings by source and the responses per question; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("a picture needs matplotlib: pip install matplotlib") from error

    stats = statistics_of(report.questions)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = sorted({float(v) for counts in stats["ratings_by_source"].values() for v in counts})
    below = [0] * len(values)
    for source, counts in stats["ratings_by_source"].items():
        heights = [counts.get(f"{value:g}", 0) for value in values]
        left.bar([f"{value:g}" for value in values], heights, bottom=below, label=source)
        below = [a + b for a, b in zip(below, heights)]
    left.set(title="ratings by source", xlabel="rating", ylabel="responses")
    if values:
        left.legend(fontsize="small")
    sizes = stats["responses_per_question"]
    right.bar([str(size) for size in sizes], list(sizes.values()))
    right.set(title="responses per question", xlabel="responses", ylabel="questions")
    figure.savefig(path)
