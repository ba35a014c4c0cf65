"""A local OpenAI-compatible server that can fail as real ones do, and records every call."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# status, headers, body (text is sent unchanged), seconds to wait before
ServerReply = tuple[int, dict[str, str], Any, float]


def completion(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


class Server:
    """A context manager. behave: (prompt, how often it was sent before, number of the call) -> ServerReply."""

    def __init__(self, behave: Callable[[str, int, int], ServerReply]):
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # complete replies with status 200
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.reply((200, {}, {"data": [{"id": "only-one"}]}, 0.0))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
                with outer._lock:
                    before, number = outer.calls[prompt], len(outer.bodies)
                    outer.calls[prompt] += 1
                    outer.bodies.append(body)
                    outer.paths.append(self.path)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    answer = behave(prompt, before, number)
                    time.sleep(answer[3])
                finally:
                    with outer._lock:  # before the reply: the client may send the next request at once
                        outer.at_once -= 1
                if self.reply(answer) and answer[0] == 200:
                    with outer._lock:
                        outer.answered[prompt] += 1

            def reply(self, answer: ServerReply) -> bool:
                status, headers, body, _ = answer
                raw = (body if isinstance(body, str) else json.dumps(body)).encode()
                try:
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:  # the client has closed the connection
                    return False
                return True

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
