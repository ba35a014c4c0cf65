"""Rating answers by a judge: the requests, the ratings in its replies, and how far two raters agree.

The judge is an endpoint, a model on this machine, or somebody who answers a file of requests. If a judgement holds no
rating, the judge is asked again. If no try gives one, the answer is counted and listed as failed, without a rating.
"""

import collections
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from care_jax.data.questions import user_turn
from care_jax.errors import UserError
from care_jax.evaluation.answers.prompts import GenerationSettings, PromptRow
from care_jax.evaluation.answers.responses import FIELDS, read_answers
from care_jax.evaluation.endpoint.cache import ReplyCache, content_key
from care_jax.evaluation.endpoint.client import Client
from care_jax.evaluation.endpoint.transport import Reply, request_body
from care_jax.evaluation.rubrics import Rubric, choose_rubric
from care_jax.evaluation.statistics import RaterAgreement, agreement
from care_jax.textfiles import JsonObject, parse_lines

DEFAULT_JUDGE = "gpt-4o"


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of the requests. rubric: one for all rows, instead of that of their category. limit: number of rows."""

    model: str = DEFAULT_JUDGE
    temperature: float = 0.0
    max_tokens: int = 1024  # 256, which others use, cuts some comments off before the rating
    rubric: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to be rated. row: its line in the file. body: the request, or None if there is no answer."""

    row: JsonObject
    rubric: Rubric
    body: JsonObject | None
    custom_id: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's rating and text. rating: None if there is none; `problem` then says why."""

    rating: float | None
    text: str | None
    problem: str = ""


_NO_RESPONSE = Judgement(None, None, "no response")  # an answer without text is not judged


def read_jobs(path: str, rubrics: Mapping[str, Rubric], settings: JudgeSettings) -> list[Job]:
    """Returns the answers of a file, each with its request to the judge. Raises UserError if one has no question."""
    jobs = []
    for number, answer in enumerate(read_answers(path)[: settings.limit]):
        if answer.question is None or not answer.question.strip():
            raise UserError(f"{path}, row {number}: no question; its keys are {', '.join(map(str, answer.row))}")
        values = FIELDS.of(answer.row)
        name = settings.rubric or answer.row.get("rubric")
        rubric = choose_rubric(rubrics, _text(values.get("category")), name if isinstance(name, str) else None)
        body = None
        if answer.response is not None and answer.response.strip():
            prompt = rubric.prompt(answer.question, _text(values.get("reference")) or "(none)", answer.response)
            message = {"role": "user", "content": prompt}
            body = request_body(
                settings.model, [message], temperature=settings.temperature, max_tokens=settings.max_tokens
            )
        jobs.append(Job(answer.row, rubric, body, f"{number}-{content_key(body or {})[:12]}"))
    return jobs


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def count_pending(jobs: Sequence[Job], cache: ReplyCache, tries: int) -> int:
    """Returns how many distinct requests have neither a rating nor a reply to the last try in the cache."""
    pending = set()
    for job in jobs:
        if job.body is None:
            continue
        replies = [cache.get(content_key(job.body, attempt)) for attempt in range(tries)]
        if replies[-1] is None and not any(reply and job.rubric.rates(reply["text"]) for reply in replies):
            pending.add(content_key(job.body))
    return len(pending)


def judge_by_endpoint(
    jobs: Sequence[Job], client: Client, tries: int, progress: Callable[[], object] = lambda: None
) -> list[Judgement]:
    """Returns the judgements in the order of the jobs. Equal requests are sent once."""
    # rubric -> request -> its jobs. The rubric reads the rating, so each rubric has its own round of calls.
    by_rubric: dict[str, dict[str, list[int]]] = {}
    for number, job in enumerate(jobs):
        if job.body is not None:
            by_rubric.setdefault(job.rubric.name, {}).setdefault(content_key(job.body), []).append(number)
    judgements = [_NO_RESPONSE for _ in jobs]
    for by_request in by_rubric.values():
        groups = list(by_request.values())
        rubric = jobs[groups[0][0]].rubric
        bodies = [jobs[numbers[0]].body or {} for numbers in groups]
        for request, reply in client.ask_all(bodies, rubric.rates, tries):
            for number in groups[request]:
                judgements[number] = _judgement(rubric, reply)
            progress()
    return judgements


def _judgement(rubric: Rubric, reply: Reply) -> Judgement:
    if reply.text is None:
        return Judgement(None, None, reply.problem or "no answer")
    rating = rubric.parse(reply.text)
    return Judgement(rating, reply.text, "" if rating is not None else "no rating in the judgement")


def judge_by_model(
    jobs: Sequence[Job],
    generate: Callable[[list[PromptRow], GenerationSettings], Iterable[JsonObject]],
    cache: ReplyCache,
    tries: int,
    progress: Callable[[], object] = lambda: None,
) -> list[Judgement]:
    """Returns the judgements of a model: greedy first, then, if that gives no rating, at temperature 0.7.

    generate: returns the lines of the model's answers to prompts, as `generate_answers` does.
    """
    judgements = [_NO_RESPONSE for _ in jobs]
    unrated = [(number, job.rubric, job.body) for number, job in enumerate(jobs) if job.body is not None]
    for attempt in range(tries):
        new = []
        for number, rubric, body in unrated:
            stored = cache.get(content_key(body, attempt))
            if stored is None:
                new.append((number, rubric, body))
            else:
                judgements[number] = _judgement(rubric, Reply(stored["text"]))
        if new:
            prompts = [PromptRow(number, {}, user_turn(body["messages"][0]["content"])) for number, _, body in new]
            temperature = 0.0 if attempt == 0 else 0.7
            settings = GenerationSettings(temperature, seed=attempt, max_tokens=new[0][2]["max_tokens"])
            for (number, rubric, body), line in zip(new, generate(prompts, settings)):
                cache.put(content_key(body, attempt), {"text": line["response"]})
                judgements[number] = _judgement(rubric, Reply(line["response"]))
                progress()
        unrated = [request for request in unrated if judgements[request[0]].rating is None]
    return judgements


def request_lines(jobs: Iterable[Job]) -> list[JsonObject]:
    """Returns the lines of a batch file, one per job that has an answer."""
    return [
        {"custom_id": job.custom_id, "method": "POST", "url": "/v1/chat/completions", "body": dict(job.body)}
        for job in jobs
        if job.body is not None
    ]


def judge_by_files(jobs: Sequence[Job], paths: Sequence[str]) -> tuple[list[Judgement], int]:
    """Returns the judgements in batch output files, and how many lines belong to no job.

    If several lines answer a job, the last one with a rating counts.
    """
    replies: dict[str, list[Reply]] = collections.defaultdict(list)
    for path in paths:
        for line in _batch_lines(path):
            replies[str(line.get("custom_id"))].append(_batch_reply(line))
    known = {job.custom_id for job in jobs}
    judgements = []
    for job in jobs:
        newest_first = [_judgement(job.rubric, reply) for reply in reversed(replies.get(job.custom_id, []))]
        rated = [judgement for judgement in newest_first if judgement.rating is not None]
        nothing = _NO_RESPONSE if job.body is None else Judgement(None, None, "no answer in the files")
        judgements.append((rated or newest_first or [nothing])[0])
    return judgements, sum(len(lines) for id_, lines in replies.items() if id_ not in known)


def _batch_lines(path: str) -> Iterator[JsonObject]:
    try:
        lines = list(parse_lines(pathlib.Path(path).expanduser()))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--answers-in: cannot read {path}: {error}") from None
    for place, line in lines:
        if not isinstance(line, dict) or "custom_id" not in line:
            raise UserError(f"{place}: no custom_id: not a line of a batch's output")
        yield line


def _batch_reply(line: JsonObject) -> Reply:
    response = line.get("response")
    if isinstance(response, Mapping) and response.get("status_code", 200) == 200:
        try:
            return Reply(response["body"]["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            return Reply(None, problem="not a chat completion")
    error = line.get("error") or (response.get("body") if isinstance(response, Mapping) else None)
    return Reply(None, problem=f"the batch failed: {json.dumps(error)}"[:200])


def rated_lines(jobs: Sequence[Job], judgements: Sequence[Judgement], judge: str, criteria: str) -> list[JsonObject]:
    """Returns the answers' lines with `rating`, `judgement`, `judge`, `rubric`, `criteria`; without a rating also
    `judge_failed`, which says why.
    """
    lines = []
    for job, judgement in zip(jobs, judgements, strict=True):
        line = {key: value for key, value in job.row.items() if key != "judge_failed"}
        line |= {"rating": judgement.rating, "judgement": judgement.text, "judge": judge}
        line |= {"rubric": job.rubric.name, "criteria": criteria}
        if judgement.rating is None:
            line["judge_failed"] = judgement.problem
        lines.append(line)
    return lines


def summarize_judgements(jobs: Sequence[Job], judgements: Sequence[Judgement]) -> JsonObject:
    """Returns `rows judged failed empty mean mean_failures_as_lowest problems`."""
    ratings = [judgement.rating for judgement in judgements if judgement.rating is not None]
    empty = sum(job.body is None for job in jobs)
    lowest = [
        job.rubric.low if judgement.rating is None else judgement.rating for job, judgement in zip(jobs, judgements)
    ]
    problems = collections.Counter(judgement.problem for judgement in judgements if judgement.rating is None)
    return {
        "rows": len(jobs),
        "judged": len(ratings),
        "failed": len(jobs) - len(ratings) - empty,
        "empty": empty,
        "mean": sum(ratings) / len(ratings) if ratings else None,
        "mean_failures_as_lowest": sum(lowest) / len(lowest) if lowest else None,
        "problems": dict(problems),
    }


def agreement_with_people(lines: Sequence[JsonObject]) -> RaterAgreement | None:
    """Returns the judge's agreement with `human_rating`, or None if no line holds one."""
    return _agreement((line["rating"], _number(line.get("human_rating"))) for line in lines)


def agreement_with_judge(lines: Sequence[JsonObject], path: str) -> RaterAgreement:
    """Returns the agreement with the output of another judge. Raises UserError if it rates none of these answers."""
    other = {_identity(answer.row): _number(answer.row.get("rating")) for answer in read_answers(path)}
    result = _agreement((line["rating"], other.get(_identity(line))) for line in lines)
    if result is None:
        raise UserError(f"--second: {path} rates none of these answers")
    return result


def _agreement(pairs: Iterable[tuple[float | None, float | None]]) -> RaterAgreement | None:
    """Returns the agreement over the pairs that have both ratings; None if there is no such pair."""
    rated = [(first, second) for first, second in pairs if first is not None and second is not None]
    return agreement([first for first, _ in rated], [second for _, second in rated]) if rated else None


def _identity(row: JsonObject) -> tuple[str, ...]:
    values = FIELDS.of(row)
    return tuple(str(values.get(name)) for name in ("question", "response", "system"))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | SupportsFloat):
        return None
    try:
        return float(value)
    except ValueError:
        return None
