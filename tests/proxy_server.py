"""A real HTTP proxy on this machine: forwards plain requests, tunnels TLS, may ask for a password, and looks names up.

`hosts` says where names lead, so that tests can use names that nothing but the proxy knows.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import selectors
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.serving import running


class ProxyServer(ThreadingHTTPServer):
    """A proxy; `asked` lists the hosts that it was asked for, in order."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hosts: dict[str, int], password: str | None = None) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.hosts, self.password = hosts, password
        """Port of this machine by host name; `user:password` that must be given."""
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def address(self, credentials: str = '') -> str:
        """For HTTP_PROXY."""
        return f'http://{credentials and credentials + "@"}127.0.0.1:{self.server_port}'


class _Handler(BaseHTTPRequestHandler):
    server: ProxyServer
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args: object) -> None:
        pass

    def _port(self, host: str) -> int | None:
        """Where a host leads, if the client may ask for it."""
        with self.server.lock:
            self.server.asked.append(host)
        given = self.headers.get('Proxy-Authorization', '')
        if self.server.password is not None:
            wanted = 'Basic ' + base64.b64encode(self.server.password.encode()).decode()
            if given != wanted:
                self.send_error(407)
                return None
        if host not in self.server.hosts:
            self.send_error(502)
            return None
        return self.server.hosts[host]

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        port = self._port(parts.hostname or '')
        if port is None:
            return
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        headers = {k: v for k, v in self.headers.items() if not k.lower().startswith(('proxy-', 'connection'))}
        upstream = http.client.HTTPConnection('127.0.0.1', port)
        target = parts.path + (f'?{parts.query}' if parts.query else '')
        upstream.request(self.command, target, body or None, headers)
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response_only(answer.status)  # without a Date and a Server of its own
        for name, value in answer.getheaders():
            if name.lower() not in ('transfer-encoding', 'content-length', 'connection'):
                self.send_header(name, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    do_POST = do_GET

    def do_CONNECT(self) -> None:
        port = self._port(self.path.rpartition(':')[0])
        if port is None:
            return
        with socket.create_connection(('127.0.0.1', port)) as upstream:
            self.send_response(200)
            self.end_headers()
            _pass_on(self.connection, upstream)
        self.close_connection = True


def _pass_on(client: socket.socket, upstream: socket.socket) -> None:
    """Copy bytes both ways until one side hangs up."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(client, selectors.EVENT_READ, upstream)
        waiting.register(upstream, selectors.EVENT_READ, client)
        while True:
            for key, _ in waiting.select():
                source, sink = key.fileobj, key.data
                piece = source.recv(1 << 16)  # type: ignore[union-attr]
                if not piece:
                    return
                sink.sendall(piece)


@contextlib.contextmanager
def proxy_server(hosts: dict[str, int], password: str | None = None) -> Iterator[ProxyServer]:
    """A running proxy."""
    with running(ProxyServer(hosts, password)) as server:
        yield server
