"""A client of an OpenAI-compatible endpoint: parallel calls with retries, Retry-After, a rate limit and a cache.

Each call opens one connection, from as many threads as calls may run at once.
"""

import _thread
import contextlib
import json
import queue
import random
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from care_jax.evaluation.endpoint.cache import ReplyCache, content_key
from care_jax.evaluation.endpoint.transport import CallFailed, Reply, authorization, fetch, parse_reply
from care_jax.textfiles import JsonObject


@dataclass(frozen=True)
class Endpoint:
    """An endpoint and how to call it.

    timeout: seconds per call. retries: further calls after a failed one. concurrency: calls that run at once.
    requests_per_minute: limit of calls started per minute. backoff: seconds before the first retry, doubled each time.
    """

    base_url: str
    model: str
    timeout: float = 60.0
    retries: int = 5
    concurrency: int = 16
    requests_per_minute: float | None = None
    backoff: float = 1.0


@dataclass
class Client:
    """Sends requests to an endpoint. counts: calls, replies from the cache, and failures by kind."""

    endpoint: Endpoint
    cache: ReplyCache = field(default_factory=lambda: ReplyCache(None))
    counts: Counter[str] = field(default_factory=Counter)
    _lock: contextlib.AbstractContextManager[bool] = field(default_factory=threading.Lock, init=False, repr=False)
    _not_before: float = 0.0
    _next: float = 0.0
    _stopped: bool = False

    def ask_all(
        self, bodies: Sequence[Mapping[str, object]], usable: Callable[[str], bool] = lambda text: True, tries: int = 1
    ) -> Iterator[tuple[int, Reply]]:
        """Yields (number, reply) of every body, in the order in which the replies arrive.

        usable: whether the text of a reply can be used. If not, the body is asked again, `tries` times in all, and the
        last reply is returned. If the iteration ends early, it waits for the running calls, whose replies are cached.
        """
        # An interrupt may be raised anywhere in the main thread. Inside concurrent.futures.wait or Thread.start it
        # would leave locks locked that the workers need. So here are bare threads, and queues whose methods are atomic.
        self._stopped = False
        todo: queue.SimpleQueue[tuple[int, Mapping[str, object]]] = queue.SimpleQueue()
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
                    arrived.put((number, self._ask(body, usable, tries)))
                except Exception as error:  # raised in the thread that reads the replies
                    arrived.put((number, error))
            ended.put(None)

        threads = 0
        try:
            for _ in range(min(len(bodies), self.endpoint.concurrency)):
                _thread.start_new_thread(work, ())
                threads += 1
            for _ in bodies:
                number, reply = arrived.get()
                if isinstance(reply, Exception):
                    raise reply
                yield number, reply
        finally:
            self._stopped = True  # no more calls start
            for _ in range(threads):
                ended.get()

    def _ask(self, body: Mapping[str, object], usable: Callable[[str], bool], tries: int) -> Reply:
        reply = Reply(None, problem="stopped")
        for attempt in range(tries):
            if self._stopped:
                break
            reply = self._cached(body, attempt)
            if reply.text is None or usable(reply.text):
                break
            if attempt + 1 < tries:
                self._count("asked again: unusable answer")
        return reply

    def _cached(self, body: Mapping[str, object], attempt: int) -> Reply:
        key = content_key(body, attempt)
        stored = self.cache.get(key)
        if stored is not None:
            self._count("from the cache")
            return Reply(stored["text"], stored.get("finish_reason"))
        reply = self._call(body)
        if reply.text is not None:
            self.cache.put(key, {"text": reply.text, "finish_reason": reply.finish_reason})
        return reply

    def _call(self, body: Mapping[str, object]) -> Reply:
        problem = ""
        for number in range(self.endpoint.retries + 1):
            self._wait()
            if self._stopped:
                return Reply(None, problem="stopped")
            self._count("calls")
            try:
                return parse_reply(self._post("completions" if "prompt" in body else "chat/completions", body))
            except CallFailed as failure:
                problem = failure.problem
                self._count(problem.split(":")[0])
                if not failure.again:
                    return Reply(None, problem=problem)
                if failure.after is not None:  # all threads wait
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + failure.after)
                elif number < self.endpoint.retries:  # at most a minute, with a random part
                    self._sleep(random.uniform(0.5, 1.0) * min(60.0, self.endpoint.backoff * 2**number))
        return Reply(None, problem=problem)

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _wait(self) -> None:
        """Waits until the server's pause is over and the rate limit allows one more call."""
        with self._lock:
            start = max(time.monotonic(), self._not_before, self._next)
            if self.endpoint.requests_per_minute is not None:
                self._next = start + 60.0 / self.endpoint.requests_per_minute
        self._sleep(start - time.monotonic())

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.25))

    def _post(self, path: str, body: Mapping[str, object]) -> JsonObject:
        request = urllib.request.Request(
            f"{self.endpoint.base_url.rstrip('/')}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **authorization()},
        )
        return fetch(request, self.endpoint.timeout)
