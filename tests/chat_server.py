"""An OpenAI-compatible endpoint that answers as it is told, and misbehaves as it is told."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """One answer of the server."""

    text: str = ''
    """Content of the message."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """The whole body, in place of a message."""
    cut: int = 0
    """Bytes at the end that are announced and never sent."""
    after_s: float = 0
    """Seconds before it answers."""


class ChatServer(ThreadingHTTPServer):
    """`POST /v1/chat/completions` gives the replies in turn, the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.replies = [Reply()]
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        """Path, headers and content of each."""

    @property
    def url(self) -> str:
        """Its root."""
        return f'http://127.0.0.1:{self.server_port}'


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        server = self.server
        server.requests.append((self.path, dict(self.headers), content))
        reply = server.replies[min(len(server.requests), len(server.replies)) - 1]
        time.sleep(reply.after_s)
        message = {'choices': [{'message': {'role': 'assistant', 'content': reply.text}}]}
        body = json.dumps(message).encode() if reply.body is None else reply.body
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - reply.cut])
