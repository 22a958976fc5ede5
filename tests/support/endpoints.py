"""A local OpenAI-compatible endpoint that refuses fields of a request, as hosted services do."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Refusal = tuple[int, Any]
"""An HTTP status and the body of the reply."""


@dataclass
class Server:
    """What an endpoint does, and the requests that it has got."""

    refuse: Callable[[dict[str, Any]], Refusal | None]
    """Returns how a request is refused; None answers it."""
    reply: Callable[[dict[str, Any]], list[str]]
    """Returns the texts of the choices."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    answered: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    def answer(self, request: dict[str, Any]) -> Refusal:
        self.requests.append(request)
        refusal = self.refuse(request)
        if refusal is not None:
            return refusal
        self.answered.append(request)
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
            for i, text in enumerate(self.reply(request))
        ]
        completion = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return 200, completion | {"choices": choices}


@contextmanager
def endpoint(
    refuse: Callable[[dict[str, Any]], Refusal | None],
    reply: Callable[[dict[str, Any]], list[str]] = lambda _: ["hello"],
) -> Iterator[Server]:
    """Runs an endpoint within this context."""
    server = Server(refuse, reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            status, body = server.answer(json.loads(self.rfile.read(length)))
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
