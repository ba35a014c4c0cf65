"""From rated questions to units: which pairs, labels or lists are learned from, and which questions are held out.

Everything here is a function of the seed and of the questions' contents, never of the order of a file.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from care_jax.data.questions import Content, Question, Response, Stored
from care_jax.errors import UserError, nearest

POLICIES = ("all", "best_worst", "adjacent", "random")
VIEWS = ("pairs", "unpaired", "lists")
PAIR_WEIGHTS = ("equal", "gap")
LABELS = ("thresholds", "relative", "best")
Number = int | float
_EQUAL = 1e-9  # ratings closer than this are the same


@dataclass(frozen=True, slots=True)
class Unit:
    """What one optimizer step counts as one.

    question: index in the corpus. responses: indices within that question. pairs: (chosen, rejected) as positions in
    `responses`; none in the other views. desirable: the label in the unpaired view, where `responses` is one. A unit
    with neither is a list. weight: of each of its pairs, of its response, or of the list. pair_weights: of its pairs
    where they differ.
    """

    question: int
    responses: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    desirable: bool | None = None
    weight: Number = 1.0
    pair_weights: tuple[Number, ...] = ()

    @property
    def weights(self) -> tuple[Number, ...]:
        """The weight of each pair."""
        return self.pair_weights or (self.weight,) * len(self.pairs)


def stable_hash(*parts: object) -> int:
    """64 bits of a hash that is the same in every process and version (blake2b of the parts' JSON)."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, default=dict)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def content_hash(content: Content) -> int:
    """A hash of a response's words or ids."""
    if isinstance(content, Stored):
        return content.identity
    return stable_hash(content if isinstance(content, str) else list(content))


def _rank(response: Response) -> tuple[str, int]:
    return response.source, content_hash(response.content)


# --- pairs -----------------------------------------------------------------------------------------------------------


def pair_indices(
    ratings: Sequence[Number],
    policy: str = "all",
    min_gap: Number = 1,
    max_per_question: int | None = None,
    seed: int = 0,
    key: str = "",
    ranks: Sequence[object] | None = None,
) -> list[tuple[int, int]]:
    """(chosen, rejected) indices of one question's responses; a tie never pairs, whatever min_gap.

    policy: `all` valid pairs; `best_worst` one, of the highest and the lowest rating; `adjacent` one for every two
    neighbouring distinct ratings; `random` one (max_per_question, if given) of all valid ones, drawn by (seed, key).
    min_gap: least difference of the ratings; at 1, the least there is, every two that are no tie pair, even where one
    is the mean of conflicting ratings. max_per_question: at most so many, drawn by (seed, key).
    ranks: what orders responses of equal rating ((source, hash)); without it their index does.
    """
    if policy not in POLICIES:
        raise UserError(
            f"data.pairs.policy: expected one of {', '.join(POLICIES)}, found {policy!r}{nearest(policy, POLICIES)}"
        )
    own: Sequence = range(len(ratings)) if ranks is None else ranks
    order = sorted(range(len(ratings)), key=lambda i: (-ratings[i], own[i]))
    if policy in ("all", "random"):
        pairs = [(i, j) for place, i in enumerate(order) for j in order[place + 1 :]]
    else:
        levels: dict[Number, int] = {}
        for i in order:
            levels.setdefault(ratings[i], i)  # the first of its rating stands for it
        ladder = list(levels.values())
        rungs = itertools.pairwise(ladder) if policy == "adjacent" else zip(ladder[:1], ladder[-1:])
        pairs = list(rungs)
    least = min_gap if min_gap > 1 else 0
    pairs = [(i, j) for i, j in pairs if ratings[i] > ratings[j] and ratings[i] - ratings[j] >= least]
    most = 1 if policy == "random" and max_per_question is None else max_per_question
    if most is not None and len(pairs) > most:
        drawn = sorted(range(len(pairs)), key=lambda n: stable_hash(seed, "pair", key, n))[:most]
        pairs = [pairs[n] for n in sorted(drawn)]
    return pairs


def question_pairs(
    question: Question, policy: str, min_gap: Number, max_per_question: int | None, seed: int
) -> list[tuple[int, int]]:
    """The same for a question; where the data say which is chosen and which rejected, that is the pair."""
    fields = [response.field for response in question.responses]
    if "chosen" in fields or "rejected" in fields:
        if "chosen" not in fields or "rejected" not in fields:
            return []
        return [(fields.index("chosen"), fields.index("rejected"))]
    rated = [i for i, response in enumerate(question.responses) if response.rating is not None]
    responses = [question.responses[i] for i in rated]
    pairs = pair_indices(
        [response.rating for response in responses if response.rating is not None],
        policy,
        min_gap,
        max_per_question,
        seed,
        question.key,
        [_rank(response) for response in responses],
    )
    return [(rated[i], rated[j]) for i, j in pairs]


# --- units of a view -------------------------------------------------------------------------------------------------


def make_units(
    questions: Sequence[Question],
    view: str = "pairs",
    *,
    policy: str = "best_worst",
    min_gap: Number = 1,
    max_per_question: int | None = None,
    seed: int = 0,
    unit: str = "pair",
    weights: str = "equal",
    labels: str = "thresholds",
    desirable_min: Number = 7,
    undesirable_max: Number = 4,
    reduction: str = "pair",
) -> list[Unit]:
    """The units of `questions` for a loss of this view, question by question in their order.

    pairs: by policy (`pair_indices`); unit `pair` or `group` (all pairs of a question); weights `equal`, or `gap`: a
    pair weighs the difference of its ratings; reduction `group`: the weights of a question's pairs sum to 1.
    unpaired: a label in the data itself goes first, then labels `thresholds`: a response rated at least desirable_min
    is desirable, at most undesirable_max undesirable, between left out; `relative`: above or below the mean rating of
    its question, at the mean left out; `best`: only the best response of each question, desirable.
    lists: the rated responses of every question with two distinct ratings.
    """
    choices = (
        ("view", view, VIEWS),
        ("batch.unit", unit, ("pair", "group")),
        ("batch.reduction", reduction, ("pair", "group")),
        ("data.pairs.weights", weights, PAIR_WEIGHTS),
        ("data.labels", labels, LABELS),
    )
    for name, value, valid in choices:
        if value not in valid:
            raise UserError(f"{name}: expected {' or '.join(valid)}, found {value!r}{nearest(value, valid)}")
    units: list[Unit] = []
    for index, question in enumerate(questions):
        if view == "pairs":
            pairs = question_pairs(question, policy, min_gap, max_per_question, seed)
            gaps = [_gap(question, pair) for pair in pairs] if weights == "gap" else [1.0] * len(pairs)
            units += pair_units(index, pairs, gaps, unit, reduction)
        elif view == "unpaired":
            units += _labelled(index, question, labels, desirable_min, undesirable_max)
        else:
            rated = [i for i, response in enumerate(question.responses) if response.rating is not None]
            if len({question.responses[i].rating for i in rated}) > 1:
                # In the order of the ratings, so that a list is the same whatever the order of the file.
                rated.sort(key=lambda i: (-(question.responses[i].rating or 0.0), _rank(question.responses[i])))
                units.append(Unit(index, tuple(rated)))
    return units


def _gap(question: Question, pair: tuple[int, int]) -> float:
    chosen, rejected = (question.responses[i].rating for i in pair)
    if chosen is None or rejected is None or chosen <= rejected:
        raise UserError(
            f"data.pairs.weights: gap needs a chosen response rated above the rejected one; {question.file}, row "
            f"{question.responses[pair[0]].row} has {chosen} and {rejected}"
        )
    return chosen - rejected


def pair_units(
    question: int, pairs: Sequence[tuple[int, int]], weights: Sequence[Number], unit: str, reduction: str
) -> list[Unit]:
    """One question's pairs (indices of its responses), each with its weight, as units."""
    if not pairs:
        return []
    if reduction == "group":
        whole = sum(weights)
        weights = [weight / whole for weight in weights]
    if unit == "pair":
        return [Unit(question, pair, ((0, 1),), None, weight) for pair, weight in zip(pairs, weights)]
    needed = sorted({response for pair in pairs for response in pair})
    place = {response: position for position, response in enumerate(needed)}
    own = tuple((place[i], place[j]) for i, j in pairs)
    differ = tuple(weights) if len(set(weights)) > 1 else ()
    return [Unit(question, tuple(needed), own, None, 1.0 if differ else weights[0], differ)]


def _labelled(
    index: int, question: Question, labels: str, desirable_min: Number, undesirable_max: Number
) -> list[Unit]:
    if labels == "best":
        found = best_response(question)
        return [] if found is None else [Unit(index, (found,), (), True)]
    if labels == "relative":
        rated = [response.rating for response in question.responses if response.rating is not None]
        mean = sum(rated) / len(rated) if rated else 0.0
    units = []
    for number, response in enumerate(question.responses):
        label = response.desirable
        if label is None and response.field in ("chosen", "rejected"):
            label = response.field == "chosen"
        if label is None and response.rating is not None:
            high, low = response.rating >= desirable_min, response.rating <= undesirable_max
            if labels == "relative":
                # The mean of equal ratings may be off by a rounding; that is no difference.
                high, low = response.rating - mean > _EQUAL, mean - response.rating > _EQUAL
            label = True if high else False if low else None
        if label is not None:
            units.append(Unit(index, (number,), (), label))
    return units


def best_response(question: Question) -> int | None:
    """The index of the response with the highest rating (or the desirable one), None where nothing says."""
    rated = [i for i, r in enumerate(question.responses) if r.rating is not None or r.desirable]
    if not rated:
        return None
    return min(rated, key=lambda i: (-_rating(question.responses[i]), _rank(question.responses[i])))


def _rating(response: Response) -> Number:
    return math.inf if response.rating is None else response.rating


# --- which questions -------------------------------------------------------------------------------------------------


def stratified_order(questions: Sequence[Question], seed: int, purpose: str) -> list[str]:
    """All question keys in an order whose every beginning is a fair sample of the cultures and categories.

    In each culture and category keys stand by a hash of (seed, key); any first part of the order takes the lowest of
    each, in proportion. So parts of it are nested.
    """
    strata: dict[tuple[str | None, str | None], set[str]] = defaultdict(set)
    seen: set[str] = set()
    for question in sorted(questions, key=lambda q: (q.key, q.culture or "", q.category or "")):
        if question.key not in seen:
            seen.add(question.key)
            strata[question.culture, question.category].add(question.key)
    placed = []
    for keys in strata.values():
        ranked = sorted((stable_hash(seed, purpose, key), key) for key in keys)
        placed += [((rank + 0.5) / len(ranked), value, key) for rank, (value, key) in enumerate(ranked)]
    return [key for _, _, key in sorted(placed)]


def split(
    questions: Sequence[Question], seed: int = 0, *, fraction: Number | None = None, count: int | None = None
) -> tuple[list[Question], list[Question]]:
    """(training, held out) by question key, a fraction or a number of the questions; no key is on both sides."""
    keys = stratified_order(questions, seed, "split")
    if fraction is not None:
        count = max(1, _share(fraction, len(keys), "data.eval.fraction")) if fraction > 0 else 0
    if count is None or count < 0:
        raise UserError(f"data.eval: expected {{fraction: F}} or {{questions: N}}, found {count!r}")
    if count >= len(keys) > 0:
        raise UserError(f"data.eval: {count} questions to hold out of {len(keys)} leave none to train on")
    held = set(keys[:count])
    return [q for q in questions if q.key not in held], [q for q in questions if q.key in held]


def take_fraction(questions: Sequence[Question], fraction: Number, seed: int = 0) -> list[Question]:
    """A nested part of the questions, by key: what 0.25 keeps, 0.5 keeps too."""
    if fraction == 1.0:
        return list(questions)
    keys = stratified_order(questions, seed, "fraction")
    kept = set(keys[: max(1, _share(fraction, len(keys), "data.fraction"))])
    return [q for q in questions if q.key in kept]


def _share(fraction: Number, total: int, name: str) -> int:
    if not 0 < fraction <= 1:
        raise UserError(f"{name}: expected a number above 0 and at most 1, found {fraction}")
    return math.floor(fraction * total + 0.5)


def limit_units(
    questions: Sequence[Question],
    units: Sequence[Unit],
    *,
    seed: int = 0,
    questions_limit: int | None = None,
    pairs: int | None = None,
    tokens: int | None = None,
    lengths: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    reduction: str = "pair",
) -> list[Unit]:
    """The units of a limited number of questions, pairs or tokens; what a larger limit keeps includes a smaller's.

    tokens: of prompts (once a question) and of the distinct responses that are used. lengths: a corpus's
    (prompt_lengths, first_response, completion_lengths). The last question may keep only some of its pairs; reduction
    `group` then weighs the pairs that are left.
    """
    if questions_limit is None and pairs is None and tokens is None:
        return list(units)
    rank = {key: n for n, key in enumerate(stratified_order(questions, seed, "limit"))}
    by_question: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        by_question[unit.question].append(unit)
    kept: dict[int, list[Unit]] = {}
    keys: set[str] = set()
    used = 0
    for question in sorted(by_question, key=lambda q: (rank[questions[q].key], _identity(questions[q]))):
        own = by_question[question]
        keys.add(questions[question].key)
        if questions_limit is not None and len(keys) > questions_limit:
            break
        if pairs is not None:
            if not all(unit.pairs for unit in own):
                raise UserError("limit.pairs: only a loss of pairs has them; use limit.questions or limit.tokens")
            own = _first_pairs(own, pairs - used, reduction)
            used += sum(len(unit.pairs) for unit in own)
        if tokens is not None:
            assert lengths is not None, "limit.tokens needs a corpus's lengths"
            prompt_lengths, first, completion_lengths = lengths
            responses = {response for unit in own for response in unit.responses}
            used += int(prompt_lengths[question]) + sum(int(completion_lengths[first[question] + r]) for r in responses)
            if used > tokens:
                break
        if not own:
            break
        kept[question] = own
    return [unit for question in by_question for unit in kept.get(question, ())]


def _identity(question: Question) -> int:
    """What orders groups of one question key (rows of `preferences` with one prompt), wherever their rows stand."""
    return stable_hash(*sorted((r.field, r.rating or 0.0, content_hash(r.content)) for r in question.responses))


def _first_pairs(units: list[Unit], room: int, reduction: str) -> list[Unit]:
    total = sum(len(unit.pairs) for unit in units)
    if total <= room:
        return units
    if room <= 0:
        return []
    if len(units) > 1 or len(units[0].pairs) == 1:
        cut = units[:room]
        whole = sum(unit.weight for unit in cut)
        return [dataclasses.replace(u, weight=u.weight / whole) for u in cut] if reduction == "group" else cut
    pairs = [(units[0].responses[i], units[0].responses[j]) for i, j in units[0].pairs[:room]]
    return pair_units(units[0].question, pairs, units[0].weights[:room], "group", reduction)
