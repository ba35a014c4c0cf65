"""HTTP to an OpenAI-compatible endpoint: request bodies, one call, its errors, its reply. Standard library only."""

import contextlib
import datetime
import email.message
import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from care_jax.errors import UserError
from care_jax.textfiles import JsonObject

Messages = Sequence[Mapping[str, str]]

_MAX_BYTES = 64 * 2**20  # of a reply: far above any chat completion


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. text: None if every call failed. problem: how the last call failed."""

    text: str | None
    finish_reason: str | None = None
    problem: str = ""


class CallFailed(Exception):
    """A failed call. again: whether a retry may help; after: seconds that the server asks to wait."""

    def __init__(self, problem: str, again: bool, after: float | None = None):
        super().__init__(problem)
        self.problem, self.again, self.after = problem, again, after


def request_body(model: str, prompt: Messages | str, **settings: object) -> JsonObject:
    """Returns the body of a chat completion, or of a completion if the prompt is text. Leaves out settings of None."""
    content = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
    return {"model": model, **content, **{key: value for key, value in settings.items() if value is not None}}


def check_url(url: str) -> str:
    """Returns the base URL, with /v1 if it has no path. Raises UserError if it is not an http(s) URL."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--base-url: found {url!r}, expected something like http://localhost:8000/v1")
    return url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")


def only_model(base_url: str) -> str:
    """Returns the name of the model that an endpoint serves. Raises UserError if it serves several or lists none."""
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models", headers=authorization())
    try:
        names = [str(model["id"]) for model in fetch(request, timeout=30.0)["data"]]
    except (CallFailed, KeyError, TypeError) as error:
        raise UserError(f"--base-url: {base_url} does not list its models ({error}); name one") from None
    if len(names) != 1:
        raise UserError(f"--base-url: {base_url} serves {', '.join(names[:20]) or 'no model'}; name one")
    return names[0]


def authorization() -> dict[str, str]:
    """Returns the header with the key of OPENAI_API_KEY, or none if the variable is not set."""
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def fetch(request: urllib.request.Request, timeout: float) -> JsonObject:
    """Returns the JSON object of a response.

    Raises CallFailed for a failed call, UserError if the server refuses the key or the address.
    """
    try:
        with _opener(request.full_url).open(request, timeout=timeout) as response:
            raw = _read_body(response, time.monotonic() + timeout)
    except urllib.error.HTTPError as error:
        raise _http_error(request.full_url, error) from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else None
        if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
            raise CallFailed("time out", True) from None
        problem = f"connection broken: {error!r}" if reason is None else f"no connection: {reason}"
        raise CallFailed(problem, True) from None
    try:
        value = json.loads(raw)
    except ValueError:
        raise CallFailed("not JSON: the body of the reply", True) from None
    if not isinstance(value, dict):
        raise CallFailed(f"not a chat completion: {value!r}"[:200], True)
    return value


def parse_reply(value: JsonObject) -> Reply:
    """Returns the first choice of a completion. Raises CallFailed if the body is not a completion."""
    try:
        choice = value["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if not isinstance(text, str):
            raise TypeError(f"content is {text!r}")
        return Reply(text, choice.get("finish_reason"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CallFailed(f"not a chat completion: {error!r}"[:200], True) from None


def _read_body(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Reads the complete body. urllib limits the time of each piece; the deadline ends a slow stream of pieces."""
    body = bytearray()
    while part := response.read1(1 << 16):
        body += part
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(body) > _MAX_BYTES:
            raise http.client.HTTPException(f"a reply of more than {_MAX_BYTES} bytes")
    if response.length:
        raise http.client.IncompleteRead(bytes(body[-32:]), response.length)
    return bytes(body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, since urllib would send the key to the host that the reply names, whatever it is."""

    def redirect_request(self, *_: object) -> None:
        return None


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Returns an opener that uses the proxies of the environment, except for this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    local = host in ("localhost", "::1") or host.startswith("127.")
    proxies = [urllib.request.ProxyHandler({})] if local else []
    return urllib.request.build_opener(_NoRedirect, *proxies)


def _http_error(url: str, error: urllib.error.HTTPError) -> Exception:
    code = error.code
    try:
        text = error.read(2000).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    if key := os.environ.get("OPENAI_API_KEY"):
        text = text.replace(key, "[the key]")  # some servers repeat the key
    if code in (401, 403, 404):
        hint = " (the key comes from the environment: OPENAI_API_KEY)" if code != 404 else ""
        return UserError(f"--base-url: {url} answers {code}{hint}: {text[:300]}")
    again = code in (408, 409, 425, 429) or code >= 500
    return CallFailed(f"HTTP {code}: {text[:200]}", again, retry_after(error.headers) if again else None)


def retry_after(headers: Mapping[str, str] | email.message.Message | None) -> float | None:
    """Returns the seconds of a Retry-After header, which is a number or a date; None if there is none."""
    value = headers.get("Retry-After") if headers is not None else None
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(TypeError, ValueError):  # not a date, or one without a time zone
        wait = email.utils.parsedate_to_datetime(value) - datetime.datetime.now(datetime.UTC)
        return max(0.0, wait.total_seconds())
    return None
