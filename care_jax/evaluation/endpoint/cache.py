"""Replies of an endpoint or model, cached in a file by the content of the request, so that none is asked for twice."""

import hashlib
import json
import pathlib
import threading
from collections.abc import Mapping

from care_jax.errors import UserError
from care_jax.textfiles import JsonObject, complete_lines, writing


def content_key(body: Mapping[str, object], attempt: int = 0) -> str:
    """Returns a SHA-256 of what a reply depends on: the body, which names the model, and the number of the attempt."""
    text = json.dumps([body, attempt], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies by `content_key`, appended to a JSON lines file as they arrive. Without a path they stay in memory."""

    def __init__(self, path: str | pathlib.Path | None):
        self._lock = threading.Lock()
        self._replies: dict[str, JsonObject] = {}
        self._file = None
        if path is None:
            return
        path = pathlib.Path(path)
        with writing("the cache of replies", path):
            for raw in complete_lines(path):
                try:
                    line = json.loads(raw)
                    self._replies[line["key"]] = line
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{path}: not a cache of replies: {error}; remove it, or name another") from None
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  # stays open until close()

    def get(self, key: str) -> JsonObject | None:
        return self._replies.get(key)

    def put(self, key: str, value: Mapping[str, object]) -> None:
        with self._lock:
            self._replies[key] = line = {"key": key, **value}
            if self._file is not None:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
