"""An OpenAI-compatible endpoint: chat completions with retries, time limits, Retry-After, a rate limit and a cache.

Only the standard library: one connection a call, from as many threads as calls may be under way.
"""

import _thread
import contextlib
import datetime
import email.utils
import hashlib
import http.client
import json
import os
import pathlib
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from care_jax.errors import UserError

Messages = Sequence[Mapping[str, str]]

_LARGEST = 64 * 2**20  # bytes of a reply: far above any chat completion


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. timeout: seconds a call may take; retries: further calls after a failed one; concurrency:
    calls under way at once; requests_per_minute: at most so many are begun."""

    base_url: str
    model: str
    timeout: float = 60.0
    retries: int = 5
    concurrency: int = 16
    requests_per_minute: float | None = None
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class Reply:
    """text is None where every call failed; `problem` then says how the last one did."""

    text: str | None
    finish_reason: str | None = None
    problem: str = ""
    cached: bool = False


class Unusable(Exception):
    """A failed call. again: whether it may go better; after: seconds that the server asks to wait."""

    def __init__(self, problem: str, again: bool, after: float | None = None):
        super().__init__(problem)
        self.problem, self.again, self.after = problem, again, after


def request_body(model: str, prompt: Messages | str, **settings: Any) -> dict[str, Any]:
    """The body of a chat completion, or of a completion where the prompt is text; settings of None are left out."""
    asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
    return {"model": model, **asked, **{key: value for key, value in settings.items() if value is not None}}


def content_key(body: Mapping[str, Any], attempt: int = 0) -> str:
    """SHA-256 of all that decides an answer: the body (with the model), and which attempt at it this is."""
    text = json.dumps([body, attempt], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Answers by content, a JSON line each, appended the moment they arrive; a torn last line is cut off."""

    def __init__(self, path: str | pathlib.Path | None):
        self._lock = threading.Lock()
        self._held: dict[str, dict[str, Any]] = {}
        self._file = None
        if path is None:
            return
        place = pathlib.Path(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "ab+") as file:
                file.seek(0)
                end = 0
                for raw in file:
                    if not raw.endswith(b"\n"):
                        break
                    line = json.loads(raw)
                    self._held[line["key"]] = line
                    end += len(raw)
                file.truncate(end)
            self._file = open(place, "a", encoding="utf-8")  # noqa: SIM115  # kept open, closed by close()
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{place}: not a cache of answers: {error}; remove it, or name another") from None
        except OSError as error:
            raise UserError(f"cannot write {place}: {error.strerror}") from None

    def get(self, key: str) -> dict[str, Any] | None:
        return self._held.get(key)

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        with self._lock:
            line = {"key": key, **value}
            self._held[key] = line
            if self._file is not None:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@dataclass
class Client:
    """Asks an endpoint. counts: calls, retries, and every kind of failure, over the life of the client."""

    endpoint: Endpoint
    cache: ReplyCache = field(default_factory=lambda: ReplyCache(None))
    counts: Counter[str] = field(default_factory=Counter)
    _lock: contextlib.AbstractContextManager[Any] = field(default_factory=threading.Lock, init=False, repr=False)
    _not_before: float = 0.0
    _next: float = 0.0
    _stopped: bool = False

    def ask_all(
        self, bodies: Sequence[Mapping[str, Any]], judge: Callable[[str], bool] = lambda text: True, tries: int = 1
    ) -> Iterator[tuple[int, Reply]]:
        """(number, reply) of every body, as they arrive. judge: whether a text can be used; where not, it is asked
        again, `tries` times in all, and the last text is returned.

        Whatever ends the iteration early, calls under way are waited for, and are in the cache.
        """
        # An interrupt may be raised anywhere in the main thread, and one within concurrent.futures.wait or Thread.start
        # leaves locks held that the workers need, for ever: so bare threads, and queues that are one call each.
        self._stopped = False
        todo: queue.SimpleQueue[tuple[int, Mapping[str, Any]]] = queue.SimpleQueue()
        arrived: queue.SimpleQueue[tuple[int, Reply | Exception]] = queue.SimpleQueue()
        ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        for numbered in enumerate(bodies):
            todo.put(numbered)

        def work() -> None:
            while not self._stopped:
                try:
                    number, body = todo.get_nowait()
                except queue.Empty:
                    break
                try:
                    arrived.put((number, self._one(body, judge, tries)))
                except Exception as error:  # raised where the replies are read
                    arrived.put((number, error))
            ended.put(None)

        begun = 0
        try:
            for _ in range(min(len(bodies), self.endpoint.concurrency)):
                _thread.start_new_thread(work, ())
                begun += 1
            for _ in bodies:
                number, reply = arrived.get()
                if isinstance(reply, Exception):
                    raise reply
                yield number, reply
        finally:
            self._stopped = True  # no call is begun any more
            for _ in range(begun):
                ended.get()

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """The reply to one body."""
        return self._one(body, lambda text: True, 1)

    def _one(self, body: Mapping[str, Any], judge: Callable[[str], bool], tries: int) -> Reply:
        reply = Reply(None, problem="stopped")
        for attempt in range(tries):
            if self._stopped:
                break
            reply = self._cached(body, attempt)
            if reply.text is None or judge(reply.text):
                break
            if attempt + 1 < tries:
                self._count("asked again: answer not as asked for")
        return reply

    def _cached(self, body: Mapping[str, Any], attempt: int) -> Reply:
        key = content_key(body, attempt)
        held = self.cache.get(key)
        if held is not None:
            self._count("from the cache")
            return Reply(held["text"], held.get("finish_reason"), cached=True)
        reply = self._call(body)
        if reply.text is not None:
            self.cache.put(key, {"text": reply.text, "finish_reason": reply.finish_reason})
        return reply

    def _call(self, body: Mapping[str, Any]) -> Reply:
        problem = ""
        for number in range(self.endpoint.retries + 1):
            self._wait()
            if self._stopped:
                return Reply(None, problem="stopped")
            self._count("calls")
            try:
                return _reply(self._post("completions" if "prompt" in body else "chat/completions", body))
            except Unusable as wrong:
                problem = wrong.problem
                self._count(problem.split(":")[0])
                if not wrong.again:
                    return Reply(None, problem=problem)
                # Full jitter, doubling, at most a minute; what the server asks for holds for all threads.
                pause = random.uniform(0.5, 1.0) * min(60.0, self.endpoint.backoff * 2**number)
                if wrong.after is not None:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + wrong.after)
                elif number < self.endpoint.retries:
                    self._sleep(pause)
        return Reply(None, problem=problem)

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _wait(self) -> None:
        """Until the server's pause is over and the rate limit lets one more begin."""
        with self._lock:
            start = max(time.monotonic(), self._not_before, self._next)
            if self.endpoint.requests_per_minute is not None:
                self._next = start + 60.0 / self.endpoint.requests_per_minute
        self._sleep(start - time.monotonic())

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.25))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.endpoint.base_url.rstrip('/')}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **_authorization()},
        )
        return fetch(request, self.endpoint.timeout)


def fetch(request: urllib.request.Request, timeout: float) -> Any:
    """The JSON of a response. Raises `Unusable` for whatever else comes, UserError for a refused key or address."""
    try:
        with _opener(request.full_url).open(request, timeout=timeout) as response:
            raw = _body(response, time.monotonic() + timeout)
    except urllib.error.HTTPError as error:
        raise _refused(request.full_url, error) from None
    except TimeoutError:
        raise Unusable("time out", True) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise Unusable("time out", True) from None
        raise Unusable(f"no connection: {error.reason}", True) from None
    except (ConnectionError, http.client.HTTPException, OSError) as error:
        raise Unusable(f"connection broken: {error!r}", True) from None
    try:
        return json.loads(raw)
    except ValueError:
        raise Unusable("not JSON: the body of the reply", True) from None


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    """All of it. Raises TimeoutError for one that only trickles: urllib's own limit is for each piece."""
    found = bytearray()
    while part := response.read1(1 << 16):
        found += part
        if time.monotonic() > until:
            raise TimeoutError
        if len(found) > _LARGEST:
            raise http.client.HTTPException(f"a reply of more than {_LARGEST} bytes")
    if response.length:
        raise http.client.IncompleteRead(bytes(found[-32:]), response.length)
    return bytes(found)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key on, to whatever host and scheme the answer names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    code = error.code
    try:
        said = error.read(2000).decode("utf-8", "replace").strip()
    except OSError:
        said = ""
    if key := os.environ.get("OPENAI_API_KEY"):
        said = said.replace(key, "[the key]")  # some repeat what they were sent
    if code in (401, 403, 404):
        hint = " (the key comes from the environment: OPENAI_API_KEY)" if code != 404 else ""
        return UserError(f"--base-url: {url} answers {code}{hint}: {said[:300]}")
    again = code in (408, 409, 425, 429) or code >= 500
    return Unusable(f"HTTP {code}: {said[:200]}", again, _retry_after(error.headers) if again else None)


def _retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header: a number or a date."""
    value = headers.get("Retry-After") if headers is not None else None
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Through the environment's proxies, but for this machine itself."""
    host = urllib.parse.urlsplit(url).hostname or ""
    local = host in ("localhost", "::1") or host.startswith("127.")
    proxies = [urllib.request.ProxyHandler({})] if local else []
    return urllib.request.build_opener(_NoRedirect, *proxies)


def _authorization() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _reply(value: Any) -> Reply:
    """The first choice's text. Raises `Unusable` where the body is not a chat completion."""
    try:
        choice = value["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if not isinstance(text, str):
            raise TypeError(f"content is {text!r}")
        return Reply(text, choice.get("finish_reason"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unusable(f"not a chat completion: {error!r}"[:200], True) from None


def check_url(url: str) -> str:
    """The base URL; one without a path gets /v1. Raises UserError where it is none."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--base-url: found {url!r}, expected something like http://localhost:8000/v1")
    return url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")


def only_model(base_url: str, timeout: float = 30.0) -> str:
    """The name of the one model that an endpoint serves. Raises UserError where it serves several, or is not there."""
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models", headers=_authorization())
    try:
        names = [str(one["id"]) for one in fetch(request, timeout)["data"]]
    except (Unusable, KeyError, TypeError) as error:
        raise UserError(f"--base-url: {base_url} does not list its models ({error}); name one") from None
    if len(names) != 1:
        raise UserError(f"--base-url: {base_url} serves {', '.join(names[:20]) or 'no model'}; name one")
    return names[0]
