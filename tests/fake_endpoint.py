"""A local server that speaks OpenAI's chat completions, by a script.

    with FakeEndpoint(lambda messages: '{"label": "months"}') as server:
        chat(server.url, "judge")([{"role": "user", "content": "…"}])

``reply`` returns the text of an answer; a dict is sent as the whole answer; an int is a status; None hangs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Reply = str | dict[str, Any] | int | bytes | None


class FakeEndpoint:
    def __init__(self, reply: Callable[[list[dict[str, str]]], Reply]) -> None:
        self.reply = reply
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.on_request: Callable[[int], None] = lambda _count: None
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeEndpoint:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients here are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the terminal clean."""

    def do_POST(self) -> None:
        fake: FakeEndpoint = self.server.fake  # type: ignore[attr-defined]
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.asked.append(said)
        fake.headers.append(dict(self.headers))
        fake.on_request(len(fake.asked))
        reply = fake.reply(said["messages"]) if self.path == "/v1/chat/completions" else 404
        status = 200
        if reply is None:
            fake.closing.wait(30)
            self.close_connection = True
            return
        if isinstance(reply, int):
            status, body = reply, b'{"error": {"message": "no"}}'
        elif isinstance(reply, bytes):
            body = reply
        else:
            whole = reply if isinstance(reply, dict) else {"choices": [{"message": {"content": reply}}]}
            body = json.dumps(whole).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True
