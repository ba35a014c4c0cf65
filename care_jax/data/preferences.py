"""From rated questions to units: which pairs, labels or lists are learned from, and which questions are held out.

All results depend on the seed and on the contents of the questions, never on the order of a file.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from care_jax.data.corpus import Corpus
from care_jax.data.questions import Content, Question, Response, Stored
from care_jax.errors import UserError, nearest

POLICIES = ("all", "best_worst", "adjacent", "random")
VIEWS = ("pairs", "unpaired", "lists")
PAIR_WEIGHTS = ("equal", "gap")
LABELS = ("thresholds", "relative", "best")
UNITS = ("pair", "group")
Number = int | float
_EQUAL = 1e-9  # ratings that differ by less are equal


@dataclass(frozen=True, slots=True)
class Unit:
    """What one optimizer step counts as one example.

    question: index in the corpus. responses: indices within that question. pairs: (chosen, rejected) as positions in
    `responses`; empty in the other views. desirable: the label in the unpaired view, which has one response. A unit
    with neither is a list. weight: the weight of each of its pairs, of its response, or of the list. pair_weights: the
    weights of its pairs, if they differ.
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
    """A 64-bit hash that is the same in every process and version: blake2b of the parts as JSON."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, default=dict)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def content_hash(content: Content) -> int:
    """A hash of the text, messages or ids."""
    if isinstance(content, Stored):
        return content.identity
    return stable_hash(content if isinstance(content, str) else list(content))


def _rank(response: Response) -> tuple[str, int]:
    """Orders responses of equal rating."""
    return response.source, content_hash(response.content)


# --- pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PairPolicy:
    """Which pairs of a question are used; two equal ratings are never a pair.

    name: `all` valid pairs; `best_worst` one, of the highest and the lowest rating; `adjacent` one for every two
    neighbouring distinct ratings; `random` one of all valid pairs, or max_per_question.
    min_gap: least difference of the ratings. With 1, any two different ratings are a pair, also if they differ by less
    (means of conflicting ratings). max_per_question: at most this many pairs are kept. Random choices depend only on
    the seed and the question key.
    """

    name: str = "all"
    min_gap: Number = 1
    max_per_question: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise UserError(
                f"data.pairs.policy: expected one of {', '.join(POLICIES)}, found {self.name!r}"
                f"{nearest(self.name, POLICIES)}"
            )


def pair_indices(
    ratings: Sequence[Number], policy: PairPolicy, key: str = "", ranks: Sequence[tuple[str, int]] | None = None
) -> list[tuple[int, int]]:
    """(chosen, rejected) indices of the responses to one question with these ratings.

    key: the question's key. ranks: the order of responses with equal ratings; without it their index decides.
    """
    tie_order: Sequence = range(len(ratings)) if ranks is None else ranks
    order = sorted(range(len(ratings)), key=lambda i: (-ratings[i], tie_order[i]))
    if policy.name in ("all", "random"):
        pairs = [(i, j) for place, i in enumerate(order) for j in order[place + 1 :]]
    else:
        first_of_rating: dict[Number, int] = {}
        for i in order:
            first_of_rating.setdefault(ratings[i], i)
        ladder = list(first_of_rating.values())
        pairs = list(itertools.pairwise(ladder) if policy.name == "adjacent" else zip(ladder[:1], ladder[-1:]))
    least = policy.min_gap if policy.min_gap > 1 else 0
    pairs = [(i, j) for i, j in pairs if ratings[i] > ratings[j] and ratings[i] - ratings[j] >= least]
    most = 1 if policy.name == "random" and policy.max_per_question is None else policy.max_per_question
    if most is not None and len(pairs) > most:
        drawn = sorted(range(len(pairs)), key=lambda n: stable_hash(policy.seed, "pair", key, n))[:most]
        pairs = [pairs[n] for n in sorted(drawn)]
    return pairs


def question_pairs(question: Question, policy: PairPolicy) -> list[tuple[int, int]]:
    """(chosen, rejected) indices of a question's responses. If the data name the two, they are the only pair."""
    fields = [response.field for response in question.responses]
    if "chosen" in fields or "rejected" in fields:
        both = "chosen" in fields and "rejected" in fields
        return [(fields.index("chosen"), fields.index("rejected"))] if both else []
    rated = [(i, r.rating, _rank(r)) for i, r in enumerate(question.responses) if r.rating is not None]
    indices, ratings, ranks = zip(*rated) if rated else ((), (), ())
    return [(indices[i], indices[j]) for i, j in pair_indices(ratings, policy, question.key, ranks)]


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
    """The units of the questions for a loss of this view, in the order of the questions.

    View `pairs`: the pairs of `PairPolicy`. unit: `pair`, or `group` for all pairs of a question. weights: `equal`, or
    `gap` for the difference of the two ratings. reduction `group`: the weights of a question's pairs sum to 1.
    View `unpaired`: a label in the data comes first. Then labels `thresholds`: a response is desirable from a rating
    of desirable_min, undesirable up to undesirable_max, and left out between them; `relative`: desirable above the mean
    rating of its question, undesirable below, left out at the mean; `best`: only the best response of each question,
    as desirable.
    View `lists`: the rated responses of each question with two or more distinct ratings.
    """
    choices = (
        ("view", view, VIEWS),
        ("batch.unit", unit, UNITS),
        ("batch.reduction", reduction, UNITS),
        ("data.pairs.weights", weights, PAIR_WEIGHTS),
        ("data.labels", labels, LABELS),
    )
    for name, value, valid in choices:
        if value not in valid:
            raise UserError(f"{name}: expected {' or '.join(valid)}, found {value!r}{nearest(value, valid)}")
    pair_policy = PairPolicy(policy, min_gap, max_per_question, seed)
    units: list[Unit] = []
    for index, question in enumerate(questions):
        if view == "pairs":
            pairs = question_pairs(question, pair_policy)
            gaps = [_gap(question, pair) for pair in pairs] if weights == "gap" else [1.0] * len(pairs)
            units += pair_units(index, pairs, gaps, unit, reduction)
        elif view == "unpaired":
            units += _labelled_units(index, question, labels, desirable_min, undesirable_max)
        else:
            rated = [i for i, response in enumerate(question.responses) if response.rating is not None]
            if len({question.responses[i].rating for i in rated}) > 1:
                # By rating, so that the order of the file changes nothing.
                rated.sort(key=lambda i: (-(question.responses[i].rating or 0.0), _rank(question.responses[i])))
                units.append(Unit(index, tuple(rated)))
    return units


def _gap(question: Question, pair: tuple[int, int]) -> float:
    chosen, rejected = (question.responses[i].rating for i in pair)
    if chosen is None or rejected is None or chosen <= rejected:
        row = question.responses[pair[0]].row_number
        raise UserError(
            f"{question.file}, row {row}: the chosen response is rated {chosen}, the rejected one {rejected}; "
            "data.pairs.weights gap needs a higher rating for the chosen one"
        )
    return chosen - rejected


def pair_units(
    question: int, pairs: Sequence[tuple[int, int]], weights: Sequence[Number], unit: str, reduction: str
) -> list[Unit]:
    """The pairs of one question as units. pairs: indices of its responses; weights: one per pair."""
    if not pairs:
        return []
    if reduction == "group":
        total = sum(weights)
        weights = [weight / total for weight in weights]
    if unit == "pair":
        return [Unit(question, pair, ((0, 1),), None, weight) for pair, weight in zip(pairs, weights)]
    needed = sorted({response for pair in pairs for response in pair})
    place = {response: position for position, response in enumerate(needed)}
    positions = tuple((place[i], place[j]) for i, j in pairs)
    differing = tuple(weights) if len(set(weights)) > 1 else ()
    return [Unit(question, tuple(needed), positions, None, 1.0 if differing else weights[0], differing)]


def _labelled_units(
    index: int, question: Question, labels: str, desirable_min: Number, undesirable_max: Number
) -> list[Unit]:
    if labels == "best":
        best = _best_response(question)
        return [] if best is None else [Unit(index, (best,), (), True)]
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
                # The mean of equal ratings may differ from them by a rounding error.
                high, low = response.rating - mean > _EQUAL, mean - response.rating > _EQUAL
            label = True if high else False if low else None
        if label is not None:
            units.append(Unit(index, (number,), (), label))
    return units


def _best_response(question: Question) -> int | None:
    """The index of the response with the highest rating, or of the desirable one; None if the data name neither."""
    rated = [i for i, r in enumerate(question.responses) if r.rating is not None or r.desirable]
    if not rated:
        return None

    def order(index: int) -> tuple[Number, tuple[str, int]]:
        response = question.responses[index]
        return -(math.inf if response.rating is None else response.rating), _rank(response)

    return min(rated, key=order)


# --- which questions -------------------------------------------------------------------------------------------------


def stratified_order(questions: Sequence[Question], seed: int, purpose: str) -> list[str]:
    """All question keys in an order in which any first part has the cultures and categories in proportion.

    Within a culture and category, keys are ordered by a hash of (seed, purpose, key). First parts are nested.
    """
    strata: dict[tuple[str | None, str | None], set[str]] = defaultdict(set)
    seen: set[str] = set()
    for question in sorted(questions, key=lambda q: (q.key, q.culture or "", q.category or "")):
        if question.key not in seen:
            seen.add(question.key)
            strata[question.culture, question.category].add(question.key)
    positions = []
    for keys in strata.values():
        ranked = sorted((stable_hash(seed, purpose, key), key) for key in keys)
        positions += [((rank + 0.5) / len(ranked), value, key) for rank, (value, key) in enumerate(ranked)]
    return [key for _, _, key in sorted(positions)]


def split(
    questions: Sequence[Question], seed: int = 0, *, fraction: Number | None = None, count: int | None = None
) -> tuple[list[Question], list[Question]]:
    """(training, held-out) questions: holds out a fraction or a number of the question keys, with all their questions.

    Raises UserError if nothing is left to train on.
    """
    keys = stratified_order(questions, seed, "split")
    if fraction is not None:
        count = max(1, _share(fraction, len(keys), "data.eval.fraction")) if fraction > 0 else 0
    if count is None or count < 0:
        raise UserError(f"data.eval: expected {{fraction: F}} or {{questions: N}}, found {count!r}")
    if count >= len(keys) > 0:
        raise UserError(f"data.eval: cannot hold out {count} of {len(keys)} questions: none would be left to train on")
    held_out = set(keys[:count])
    return [q for q in questions if q.key not in held_out], [q for q in questions if q.key in held_out]


def take_fraction(questions: Sequence[Question], fraction: Number, seed: int = 0) -> list[Question]:
    """The questions of a fraction of the keys. Fractions are nested: 0.5 keeps all that 0.25 keeps."""
    if fraction == 1.0:
        return list(questions)
    keys = stratified_order(questions, seed, "fraction")
    kept = set(keys[: max(1, _share(fraction, len(keys), "data.fraction"))])
    return [q for q in questions if q.key in kept]


def _share(fraction: Number, total: int, name: str) -> int:
    if not 0 < fraction <= 1:
        raise UserError(f"{name}: expected a number above 0 and at most 1, found {fraction}")
    return math.floor(fraction * total + 0.5)


@dataclass(frozen=True, slots=True)
class Limit:
    """The most of a source that is used. tokens: tokens of prompts, once per question, and of distinct responses."""

    questions: int | None = None
    pairs: int | None = None
    tokens: int | None = None


def limit_units(
    questions: Sequence[Question] | Corpus,
    units: Sequence[Unit],
    limit: Limit,
    *,
    seed: int = 0,
    reduction: str = "pair",
) -> list[Unit]:
    """The units of a limited number of questions, pairs or tokens. Limits are nested: a larger one keeps the same.

    questions: a corpus if tokens are limited. The last question may keep only some of its pairs; with reduction
    `group` the weights of these again sum to 1. Raises UserError for a limit of pairs in another view.
    """
    if limit == Limit():
        return list(units)
    corpus = questions if isinstance(questions, Corpus) else None
    questions = questions.questions if isinstance(questions, Corpus) else questions
    rank = {key: n for n, key in enumerate(stratified_order(questions, seed, "limit"))}
    by_question: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        by_question[unit.question].append(unit)
    kept: dict[int, list[Unit]] = {}
    keys: set[str] = set()
    pairs = tokens = 0
    for index in sorted(by_question, key=lambda q: (rank[questions[q].key], _identity(questions[q]))):
        question_units = by_question[index]
        keys.add(questions[index].key)
        if limit.questions is not None and len(keys) > limit.questions:
            break
        if limit.pairs is not None:
            if not all(unit.pairs for unit in question_units):
                raise UserError("limit.pairs: only a loss of pairs has them; use limit.questions or limit.tokens")
            question_units = _first_pairs(question_units, limit.pairs - pairs, reduction)
            pairs += sum(len(unit.pairs) for unit in question_units)
        if limit.tokens is not None:
            assert corpus is not None, "limit.tokens needs a corpus"
            responses = {corpus.response_id(index, r) for unit in question_units for r in unit.responses}
            tokens += int(corpus.prompt_lengths[index]) + int(corpus.completion_lengths[list(responses)].sum())
            if tokens > limit.tokens:
                break
        if not question_units:
            break
        kept[index] = question_units
    return [unit for index in by_question for unit in kept.get(index, ())]


def _identity(question: Question) -> int:
    """Orders the groups of one question key (rows of `preferences` with the same prompt) by their contents."""
    return stable_hash(*sorted((r.field, r.rating or 0.0, content_hash(r.content)) for r in question.responses))


def _first_pairs(units: list[Unit], most: int, reduction: str) -> list[Unit]:
    """The first pairs of one question, at most `most`."""
    if sum(len(unit.pairs) for unit in units) <= most:
        return units
    if most <= 0:
        return []
    if len(units) > 1 or len(units[0].pairs) == 1:
        first = units[:most]
        total = sum(unit.weight for unit in first)
        return [dataclasses.replace(u, weight=u.weight / total) for u in first] if reduction == "group" else first
    pairs = [(units[0].responses[i], units[0].responses[j]) for i, j in units[0].pairs[:most]]
    return pair_units(units[0].question, pairs, units[0].weights[:most], "group", reduction)
