"""A real HTTP server on this machine that behaves as badly as hosts on the internet do, and counts what it is asked.

Paths: /photo/NAME gives `photos[NAME]`; the others say what they do in `Handler.do_GET`.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import re
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.serving import running


class PhotoServer(ThreadingHTTPServer):
    """Serves photos on a free port of 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, photos: dict[str, bytes], certificate: Path | None = None) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.photos = photos
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        """Requests by path."""
        self.sent = 0
        """Bytes of bodies."""
        self.connections = 0
        self.at_once = 0
        self.most_at_once = 0
        """The most requests that were being answered at the same time."""
        self.times: list[float] = []
        """When requests came."""
        self.agents: set[str] = set()
        self.broken: set[str] = set()
        """Photos that are answered with 503 for now."""
        self.robots: bytes | None = None
        """The robots.txt; 404 without."""
        self.robots_status = 200
        self.tags: dict[str, str] = {}
        """X-Robots-Tag by photo."""
        self.slowness_s = 0.0
        """How long a photo takes."""
        self.scheme = 'http'
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = 'https'

    def url(self, path: str) -> str:
        """Where a path is."""
        return f'{self.scheme}://127.0.0.1:{self.server_port}{path}'

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up here on purpose."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = 'HTTP/1.1'
    server: PhotoServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""

    def _send(self, status: int, body: bytes = b'', **headers: str) -> None:
        self.send_response(status)
        for name, value in {'Content_Length': str(len(body)), 'Content_Type': 'image/jpeg', **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        with self.server.lock:
            self.server.sent += len(body)
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Answer."""
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
            count = server.asked[self.path]
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            server.times.append(time.monotonic())
            server.agents.add(self.headers['User-Agent'])
        try:
            self._answer(self.path, count)
        finally:
            with server.lock:
                server.at_once -= 1

    def _answer(self, path: str, count: int) -> None:
        photos = self.server.photos
        first = next(iter(photos.values()), b'')
        if found := re.fullmatch(r'/photo/(.+)', path):
            time.sleep(self.server.slowness_s)
            content = photos.get(found[1])
            if content is None:
                self._send(404, b'no such photo', Content_Type='text/plain')
            elif found[1] in self.server.broken:
                self._send(503)
            elif wanted := re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range', '')):
                start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
                if start >= len(content):
                    self._send(416)
                else:
                    self._send(206, content[start:end], Content_Range=f'bytes {start}-{end - 1}/{len(content)}')
            elif found[1] in self.server.tags:
                self._send(200, content, X_Robots_Tag=self.server.tags[found[1]])
            else:
                self._send(200, content)
        elif path == '/robots.txt' and self.server.robots is not None:
            self._send(self.server.robots_status, self.server.robots, Content_Type='text/plain')
        elif found := re.fullmatch(r'/status/(\d+)', path):
            self._send(int(found[1]), b'an error page' * 10)
        elif found := re.fullmatch(r'/busy/(\d+)/(\d+)/(\d+)', path):  # /busy/STATUS/TIMES/RETRY-AFTER
            if count <= int(found[2]):
                self._send(int(found[1]), Retry_After=found[3])
            else:
                self._send(200, first)
        elif found := re.fullmatch(r'/to/(.+)', path):  # redirects to what follows
            self._send(302, Location=found[1])
        elif found := re.fullmatch(r'/hops/(\d+)', path):
            self._send(301, Location=f'/hops/{int(found[1]) - 1}' if int(found[1]) else '/photo/' + next(iter(photos)))
        elif path == '/page':
            self._send(200, b'<!doctype html><title>Log in</title>', Content_Type='text/html; charset=utf-8')
        elif path == '/page-as-jpeg':
            self._send(200, b'<!doctype html><title>Log in</title>')
        elif path == '/no-ranges':
            self._send(200, first)
        elif path == '/drip-body':
            self.send_response(200)
            self.send_header('Content-Length', '100000')
            self.end_headers()
            self._drip(b'\xff')
        elif path == '/drip-head':
            self.wfile.write(b'HTTP/1.1 200 OK\r\nX-Drip: ')
            self._drip(b'x')
        elif path == '/drip-chunks':
            self.send_response(200)
            self.send_header('Transfer-Encoding', 'chunked')
            self.end_headers()
            self._drip(b'0')
        elif path == '/silence':
            time.sleep(30)
        elif path == '/endless':
            self.send_response(200)
            self.send_header('Transfer-Encoding', 'chunked')
            self.end_headers()
            while True:
                self.wfile.write(b'10000\r\n' + b'\xff' * 65536 + b'\r\n')
        elif path == '/claims-much':
            self.send_response(200)
            self.send_header('Content-Length', str(10**12))
            self.end_headers()
            self.wfile.write(b'\xff')
        elif path == '/too-short':  # promises more bytes than it sends
            self.send_response(200)
            self.send_header('Content-Length', str(len(first) + 1000))
            self.end_headers()
            self.wfile.write(first)
            self.close_connection = True
        elif path == '/too-short-once':
            self._answer('/too-short' if count == 1 else '/photo/' + next(iter(photos)), count)
        elif path == '/chunked':
            self.send_response(200)
            self.send_header('Transfer-Encoding', 'chunked')
            self.end_headers()
            for i in range(0, len(first), 1000):
                piece = first[i : i + 1000]
                self.wfile.write(f'{len(piece):x}\r\n'.encode() + piece + b'\r\n')
            self.wfile.write(b'0\r\n\r\n')
        elif path == '/chunked-cut':
            self.send_response(200)
            self.send_header('Transfer-Encoding', 'chunked')
            self.end_headers()
            self.wfile.write(b'3e8\r\n' + first[:500])
            self.close_connection = True
        elif path == '/gzip':
            self._send(200, gzip.compress(first), Content_Encoding='gzip')
        elif path == '/deflate':
            self._send(200, zlib.compress(first), Content_Encoding='deflate')
        elif path == '/gzip-cut':
            self._send(200, gzip.compress(first)[:-20], Content_Encoding='gzip')
        elif path == '/gzip-bomb':
            self._send(200, _bomb(), Content_Encoding='gzip')
        elif path == '/brotli':
            self._send(200, b'\x0b\x02\x80', Content_Encoding='br')
        elif path == '/reset':
            self.close_connection = True
        else:
            self._send(404)

    def _drip(self, byte: bytes) -> None:
        for _ in range(300):
            self.wfile.write(byte)
            time.sleep(0.1)


@functools.cache
def _bomb() -> bytes:
    """200 kB that unpack to 200 MB."""
    packer = zlib.compressobj(9, wbits=31)
    return b''.join([packer.compress(b'\0' * 1_000_000) for _ in range(200)]) + packer.flush()


@contextlib.contextmanager
def serving(photos: dict[str, bytes], certificate: Path | None = None) -> Iterator[PhotoServer]:
    """A running server."""
    with running(PhotoServer(photos, certificate)) as server:
        yield server
