"""Rating answers by a judge: what each is asked, the ratings out of its words, and how far raters agree.

The judge is an endpoint, a checkpoint of one's own, or whoever answers a file of requests. Nothing is scored that was
not judged: failures are asked again, counted and listed.
"""

import collections
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from care_jax.data.rows.fields import Fields
from care_jax.errors import UserError
from care_jax.evaluation.answers.responses import ALIASES, read_answers
from care_jax.evaluation.endpoint import Client, Reply, ReplyCache, content_key, request_body
from care_jax.evaluation.rubrics import Rubric, Rubrics
from care_jax.evaluation.statistics import RaterAgreement, agreement

MAX_TOKENS = 1024  # 256, as others set it, cuts some comments before the rating
DEFAULT_JUDGE = "gpt-4o"


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to be judged. row: as it stood in the file; body: the request, None where there is no answer."""

    row: Mapping[str, Any]
    rubric: Rubric
    body: Mapping[str, Any] | None
    custom_id: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """rating is None where there is none; `problem` then says why."""

    rating: float | None
    text: str | None
    problem: str = ""


def jobs(
    path: str,
    rubrics: Rubrics,
    judge: str,
    *,
    temperature: float = 0.0,
    max_tokens: int = MAX_TOKENS,
    rubric: str | None = None,
    limit: int | None = None,
) -> list[Job]:
    """The answers of a file, with what the judge is asked about each. rubric: one for all, whatever their category."""
    fields = Fields.make(ALIASES, None)
    made = []
    for number, generate in enumerate(read_answers(path)):
        if limit is not None and number == limit:
            break
        found = fields.of(generate.row)
        question = found.get("question")
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{path}, row {number}: no question; its keys are {', '.join(map(str, generate.row))}")
        named = rubric or generate.row.get("rubric")
        chosen = rubrics.of(_text(found.get("category")), named if isinstance(named, str) else None)
        body = None
        if generate.response is not None and generate.response.strip():
            prompt = chosen.prompt(question, _text(found.get("reference")) or "(none)", generate.response)
            body = request_body(
                judge, [{"role": "user", "content": prompt}], temperature=temperature, max_tokens=max_tokens
            )
        key = content_key(body or {})[:12]
        made.append(Job(generate.row, chosen, body, f"{number}-{key}"))
    return made


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def pending(work: Sequence[Job], cache: ReplyCache, tries: int) -> int:
    """How many first calls are left: distinct requests without a usable or a last answer in the cache."""
    left = set()
    for job in work:
        if job.body is None:
            continue
        held = [cache.get(content_key(job.body, attempt)) for attempt in range(tries)]
        usable = any(one is not None and job.rubric.parse(one["text"]) is not None for one in held)
        if not usable and held[-1] is None:
            left.add(content_key(job.body))
    return len(left)


# --- by an endpoint --------------------------------------------------------------------------------------------------


def by_endpoint(
    work: Sequence[Job], client: Client, tries: int, progress: Callable[[], None] = lambda: None
) -> list[Judgement]:
    """Judgements in the order of the jobs; equal requests are asked once."""
    first: dict[str, int] = {}
    same: dict[int, list[int]] = collections.defaultdict(list)
    for number, job in enumerate(work):
        if job.body is not None:
            same[first.setdefault(content_key(job.body), number)].append(number)
    numbers = list(same)
    out: list[Judgement] = [Judgement(None, None, "no response") for _ in work]
    by_rubric: dict[str, list[int]] = collections.defaultdict(list)
    for number in numbers:
        by_rubric[work[number].rubric.name].append(number)
    # A rubric's own parser says whether an answer can be used.
    for own in by_rubric.values():
        rubric = work[own[0]].rubric
        bodies = [work[number].body or {} for number in own]
        for place, reply in client.ask_all(bodies, rubric.rates, tries):
            for number in same[own[place]]:
                out[number] = _judgement(rubric, reply)
            progress()
    return out


def _judgement(rubric: Rubric, reply: Reply) -> Judgement:
    if reply.text is None:
        return Judgement(None, None, reply.problem or "no answer")
    rating = rubric.parse(reply.text)
    return Judgement(rating, reply.text, "" if rating is not None else "no rating in the judgement")


# --- by a checkpoint of one's own ------------------------------------------------------------------------------------


def by_model(
    work: Sequence[Job],
    opened: Any,
    cache: ReplyCache,
    tries: int,
    mesh: Any = None,
    progress: Callable[[], None] = lambda: None,
    chat_template: str = "model",
) -> list[Judgement]:
    """Judgements by a model on this machine: greedy first, then, where no rating came, at temperature 0.7."""
    from care_jax.data.readers.rated import user_turn
    from care_jax.evaluation.answers import generate

    out: list[Judgement] = [Judgement(None, None, "no response") for _ in work]
    left = [number for number, job in enumerate(work) if job.body is not None]
    for attempt in range(tries):
        ask = []
        for number in left:
            held = cache.get(content_key(work[number].body or {}, attempt))
            if held is None:
                ask.append(number)
            else:
                out[number] = _judgement(work[number].rubric, Reply(held["text"]))
        bodies = [work[number].body or {} for number in ask]
        asked = [
            generate.Asked(number, {}, user_turn(body["messages"][0]["content"])) for number, body in zip(ask, bodies)
        ]
        settings = generate.Settings(
            temperature=0.0 if attempt == 0 else 0.7, seed=attempt, chat_template=chat_template,
            max_tokens=bodies[0]["max_tokens"] if bodies else 1,
        )  # fmt: skip
        for number, line in zip(ask, generate.answers(opened, asked, settings, mesh) if asked else ()):
            cache.put(content_key(work[number].body or {}, attempt), {"text": line["response"]})
            out[number] = _judgement(work[number].rubric, Reply(line["response"]))
            progress()
        left = [number for number in left if out[number].rating is None]
    return out


# --- by files: OpenAI's batch format ---------------------------------------------------------------------------------


def request_lines(work: Iterable[Job]) -> list[dict[str, Any]]:
    """The lines of a batch file, one a job that has an answer."""
    return [
        {"custom_id": job.custom_id, "method": "POST", "url": "/v1/chat/completions", "body": dict(job.body)}
        for job in work
        if job.body is not None
    ]


def by_file(work: Sequence[Job], paths: Sequence[str]) -> tuple[list[Judgement], int]:
    """Judgements out of batch output files (later ones first asked), and how many lines belong to no job."""
    replies: dict[str, list[Reply]] = collections.defaultdict(list)
    for path in paths:
        for place, line in _json_lines(path):
            replies[str(line.get("custom_id"))].append(_batch_reply(place, line))
    known = {job.custom_id for job in work}
    out = []
    for job in work:
        found = [_judgement(job.rubric, reply) for reply in reversed(replies.get(job.custom_id, []))]
        rated = [one for one in found if one.rating is not None]
        nothing = Judgement(None, None, "no response" if job.body is None else "no answer in the files")
        out.append((rated or found or [nothing])[0])
    return out, sum(len(lines) for id_, lines in replies.items() if id_ not in known)


def _json_lines(path: str) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--answers-in: cannot read {path}: {error}") from None
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} (line {number}): not JSON: {error}") from None
        if not isinstance(line, dict) or "custom_id" not in line:
            raise UserError(f"{path} (line {number}): no custom_id: not a line of a batch's output")
        yield f"{path} (line {number})", line


def _batch_reply(place: str, line: Mapping[str, Any]) -> Reply:
    response = line.get("response")
    if isinstance(response, Mapping) and response.get("status_code", 200) == 200:
        try:
            return Reply(response["body"]["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            return Reply(None, problem="not a chat completion")
    error = line.get("error") or (response.get("body") if isinstance(response, Mapping) else None)
    return Reply(None, problem=f"the batch failed: {json.dumps(error)}"[:200])


# --- what came of it -------------------------------------------------------------------------------------------------


def rated_lines(work: Sequence[Job], judgements: Sequence[Judgement], judge: str, rubrics: Rubrics) -> list[dict]:
    """The answers' lines with `rating`, `judgement`, `judge`, `rubric`, `criteria`; `judge_failed` says why not."""
    lines = []
    for job, judgement in zip(work, judgements, strict=True):
        about: dict[str, Any] = {"rating": judgement.rating, "judgement": judgement.text, "judge": judge}
        about |= {"rubric": job.rubric.name, "criteria": rubrics.criteria}
        if judgement.rating is None:
            about["judge_failed"] = judgement.problem
        lines.append({**{k: v for k, v in job.row.items() if k != "judge_failed"}, **about})
    return lines


def account(work: Sequence[Job], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """`rows judged failed empty mean mean_failures_as_lowest problems`."""
    rated = [one.rating for one in judgements if one.rating is not None]
    empty = sum(job.body is None for job in work)
    lowest = [job.rubric.low if one.rating is None else one.rating for job, one in zip(work, judgements)]
    problems = collections.Counter(one.problem for one in judgements if one.rating is None)
    return {
        "rows": len(work),
        "judged": len(rated),
        "failed": len(work) - len(rated) - empty,
        "empty": empty,
        "mean": sum(rated) / len(rated) if rated else None,
        "mean_failures_as_lowest": sum(lowest) / len(lowest) if lowest else None,
        "problems": dict(problems),
    }


def against_humans(lines: Sequence[Mapping[str, Any]]) -> RaterAgreement | None:
    """The judge's agreement with people's ratings, where lines hold `human_rating`; None where none does."""
    pairs = [(line["rating"], _number(line.get("human_rating"))) for line in lines if line["rating"] is not None]
    both = [(judge, human) for judge, human in pairs if human is not None]
    return agreement([a for a, _ in both], [b for _, b in both]) if both else None


def against_judge(lines: Sequence[Mapping[str, Any]], path: str) -> RaterAgreement:
    """The agreement with another judge's output of the same answers."""
    fields = Fields.make(ALIASES, None)
    other = {_identity(fields, one.row): _number(one.row.get("rating")) for one in read_answers(path)}
    both = [(line["rating"], other.get(_identity(fields, line))) for line in lines if line["rating"] is not None]
    shared = [(a, b) for a, b in both if b is not None]
    if not shared:
        raise UserError(f"--second: {path} rates none of these answers")
    return agreement([a for a, _ in shared], [b for _, b in shared])


def _identity(fields: Fields, row: Mapping[str, Any]) -> tuple[str, str, str]:
    found = fields.of(row)
    return str(found.get("question")), str(found.get("response")), str(found.get("system"))


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
