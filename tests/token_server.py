"""A token service and a blob store on one port: tokens live as long as told, and stale ones are answered 403."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.serving import running


class TokenServer(ThreadingHTTPServer):
    """`/token/ACCOUNT/CONTAINER` gives tokens, `/ACCOUNT/CONTAINER/...?token` gives `b'blob'` to those who have one."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.life_s = 2.0
        self.slow_s = 0.0
        """How long the token service takes."""
        self.clock_ahead_s = 0.0
        """How far the server's clock is ahead of ours."""
        self.answers: list[tuple[int, str]] = []
        """Status and body of the next answers of the token service, instead of a token."""
        self.valid: dict[str, tuple[str, float]] = {}
        """Container and end of every token."""
        self.fetched: list[str] = []
        self.refused = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f'127.0.0.1:{self.server_port}'

    def revoke(self) -> None:
        """Make all tokens stale before their time."""
        with self.lock:
            self.valid.clear()


class _Handler(BaseHTTPRequestHandler):
    server: TokenServer
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.server.clock_ahead_s)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        server = self.server
        if not parts.path.startswith('/token/'):
            token = parse_qs(parts.query).get('sig', [''])[0]
            with server.lock:
                container, until = server.valid.get(token, ('', 0.0))
                good = until > time.time() and parts.path.startswith(container + '/')
                server.refused += not good
            self.answer(200 if good else 403, b'blob' if good else b'AuthenticationFailed')
            return
        time.sleep(server.slow_s)
        with server.lock:
            server.fetched.append(parts.path)
            if server.answers:
                status, body = server.answers.pop(0)
                self.answer(status, body.encode())
                return
            token = f't{len(server.fetched)}'
            server.valid[token] = (parts.path.removeprefix('/token'), time.time() + server.life_s)
        expiry = datetime.now(timezone.utc) + timedelta(seconds=server.life_s + server.clock_ahead_s)
        content = {'msft:expiry': expiry.isoformat().replace('+00:00', 'Z'), 'token': f'se=x&sig={token}'}
        self.answer(200, json.dumps(content).encode())


@contextmanager
def token_server() -> Iterator[TokenServer]:
    """A running server."""
    with running(TokenServer()) as server:
        yield server
