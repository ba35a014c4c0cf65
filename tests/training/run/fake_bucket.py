"""Google Cloud Storage on this machine, in memory: the part of its JSON interface that gcsfs and TensorStore use.

Both read its address from their variables for emulators, so that the code that runs is the code for gs://.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignores that a client hung up: gcsfs sends two requests at once and drops the slower one."""


class Bucket:
    """objects: name (bucket/key) -> its bytes. `refuse(method, name)`, which a test may set, denies a request."""

    refuse = staticmethod(lambda method, name: False)

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.writes: list[str] = []
        self.reads: list[str] = []
        self.failures: list[str] = []  # requests that the server did not understand: a bug of these tests
        self._generations: dict[str, int] = {}
        self._begun: dict[str, bytes] = {}  # the bytes received of each upload in parts
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """Returns the variables that make this bucket the gs:// of another process."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # otherwise gcsfs asks by gRPC for the kind of bucket
            "NO_GCE_CHECK": "true",
        }

    def below(self, prefix: str) -> list[str]:
        return sorted(name.removeprefix(prefix) for name in self.objects if name.startswith(prefix))

    # ---- Requests; each is atomic, as in the real storage, since it holds the lock.

    def put(self, name: str, data: bytes, wanted: str | None) -> dict | None:
        """Writes an object; returns None if its generation is not `wanted`."""
        with self._lock:
            if wanted is not None and int(wanted) != self._generations.get(name, 0):
                return None
            self.objects[name] = data
            self.writes.append(name)
            self._generations[name] = len(self.writes)
        return self.about(name)

    def begin(self) -> str:
        with self._lock:
            number = str(len(self._begun))
            self._begun[number] = b""
        return number

    def add(self, upload: str, name: str, data: bytes, span: str) -> dict | int:
        """Adds a part of an upload; returns the object's metadata if it is complete, else the bytes received so far."""
        received = self._begun[upload]
        place = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", span)
        assert place, span
        assert place[1] is None or int(place[1]) == len(received), span
        self._begun[upload] = received = received + data
        if place[2] == "*":
            return len(received)
        assert int(place[2]) >= len(received), span
        return self.put(name, received, None) or {} if int(place[2]) == len(received) else len(received)

    def delete(self, name: str) -> bool:
        with self._lock:
            self._generations.pop(name, None)
            return self.objects.pop(name, None) is not None

    def about(self, name: str) -> dict:
        bucket, key = name.split("/", 1)
        data = self.objects[name]
        return {
            "kind": "storage#object",
            **{"bucket": bucket, "name": key, "size": str(len(data))},
            **{"generation": str(self._generations[name]), "metageneration": "1", "storageClass": "STANDARD"},
            **{"timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z"},
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
        }

    def listing(self, bucket: str, prefix: str, delimiter: str, start: str, end: str) -> dict:
        items, prefixes = [], set()
        with self._lock:
            for name in sorted(path for path in self.objects if path.startswith(f"{bucket}/{prefix}")):
                key = name.split("/", 1)[1]
                if key < start or (end and key >= end):
                    continue
                rest = key[len(prefix) :]
                if delimiter and delimiter in rest:
                    prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
                else:
                    items.append(self.about(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # a response is one packet: two would wait for each other
        disable_nagle_algorithm = True

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, body: object = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def handle_request(self) -> None:
            try:
                self.reply_to_request()
            except ConnectionError:
                raise
            except Exception:
                bucket.failures.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
                self.answer(400, {"error": {"code": 400, "message": f"not understood by the test: {self.path}"}})

        def reply_to_request(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            match = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", url.path)
            assert match, self.path
            where, key = match[1], unquote(match[2] or query.get("name", ""))
            if self.command == "POST" and query.get("uploadType") == "multipart":
                _, about, data = body.split(b"\n\n", 2)
                key, body = json.loads(about.split(b"\n--")[0])["name"], data.removesuffix(b"\n--==0==--")
            if bucket.refuse(self.command, f"{where}/{key}"):
                self.answer(403, {"error": {"code": 403, "message": "denied by the test"}})
            elif self.command == "POST" and "/rewriteTo/" in (match[2] or ""):
                source, target = (unquote(path) for path in match[2].split(f"/rewriteTo/b/{where}/o/"))
                about = bucket.put(f"{where}/{target}", bucket.objects[f"{where}/{source}"], None)
                self.answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": about})
            elif self.command == "POST" and "upload_id" in query:
                done = bucket.add(query["upload_id"], f"{where}/{key}", body, self.headers["Content-Range"])
                if isinstance(done, int):
                    self.answer(308, Range=f"bytes=0-{done - 1}")
                else:
                    self.answer(200, done)
            elif self.command == "POST" and query["uploadType"] == "resumable":
                self.answer(200, Location=f"{bucket.address}{self.path}&upload_id={bucket.begin()}")
            elif self.command == "POST":
                assert query["uploadType"] in ("multipart", "media"), self.path
                done = bucket.put(f"{where}/{key}", body, query.get("ifGenerationMatch"))
                self.answer(200 if done else 412, done or {})
            elif self.command == "GET" and match[2] is None:
                if url.path.endswith("/o"):
                    names = ("prefix", "delimiter", "startOffset", "endOffset")
                    self.answer(200, bucket.listing(where, *(query.get(name, "") for name in names)))
                else:
                    self.answer(200, {"kind": "storage#bucket", "name": where})
            elif f"{where}/{key}" not in bucket.objects:
                self.answer(404, {"error": {"code": 404, "message": "No such object"}})
            elif self.command == "DELETE":
                bucket.delete(f"{where}/{key}")
                self.answer(204)
            elif query.get("alt") == "media":
                self.media(f"{where}/{key}", query)
            else:
                self.answer(200, bucket.about(f"{where}/{key}"))

        def media(self, name: str, query: dict[str, str]) -> None:
            data, about = bucket.objects[name], bucket.about(name)
            bucket.reads.append(name)
            if query.get("ifGenerationNotMatch") == about["generation"]:
                return self.answer(304)
            known = {"x_goog_generation": about["generation"], "Content_Type": "application/octet-stream"}
            known["X_Goog_Hash"] = f"md5={about['md5Hash']}"
            span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if span is None:
                return self.answer(200, data, **known)
            first = int(span[1]) if span[1] else max(len(data) - int(span[2]), 0)
            last = int(span[2]) if span[1] and span[2] else len(data) - 1
            part = data[first : last + 1]
            if not part:
                return self.answer(416)
            at = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
            return self.answer(206, part, Content_Range=at, **known)

        do_GET = do_POST = do_DELETE = handle_request

    return Handler


@contextlib.contextmanager
def fake_gcs() -> Iterator[Bucket]:
    """While entered, gs:// is a `Bucket` for gcsfs (so for fsspec and epath) and TensorStore in this process."""
    from etils.epath import backend
    from fsspec import register_implementation
    from fsspec.config import conf
    from gcsfs import core

    for protocol in ("gs", "gcs"):  # the class that gcsfs registers asks by gRPC for the kind of bucket
        register_implementation(protocol, core.GCSFileSystem, clobber=True)
    bucket = Bucket()
    # TensorStore reads the variables once per process, when it first opens gs://.
    assert os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", bucket.address) == bucket.address
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    before = conf.pop("gcs", None)
    conf["gcs"] = {"endpoint_url": bucket.address, "token": "anon", "project": "none"}
    backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        yield bucket
    finally:
        bucket.close()
        conf.pop("gcs", None)
        if before is not None:
            conf["gcs"] = before
