"""A Hugging Face Hub of the tests: takes new repositories and uploads, and keeps what it is sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.serving import running


class HubServer(ThreadingHTTPServer):
    """`POST /api/repos/create` and the requests of an upload, whose files come inside the commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.address = f'http://127.0.0.1:{self.server_port}'
        self.status = 200
        """What a request for a repository is answered."""
        self.created: list[tuple[str | None, dict[str, Any]]] = []
        """Authorization and content of every request for a repository."""
        self.files: dict[str, bytes] = {}


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path == '/api/repos/create':
            asked = json.loads(body)
            self.server.created.append((self.headers.get('authorization'), asked))
            name = f'{asked["organization"]}/{asked["name"]}'
            self.answer({'url': f'{self.server.address}/{name}', 'id': name}, self.server.status)
        elif '/preupload/' in self.path:
            files = [{'path': f['path'], 'uploadMode': 'regular'} for f in json.loads(body)['files']]
            self.answer({'files': [{**f, 'shouldIgnore': False} for f in files]})
        elif '/commit/' in self.path:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    self.server.files[line['value']['path']] = base64.b64decode(line['value']['content'])
            name = self.path.removeprefix('/api/models/').partition('/commit/')[0]
            where = f'{self.server.address}/{name}/commit/{"a" * 40}'
            self.answer({'success': True, 'commitOid': 'a' * 40, 'commitUrl': where, 'hookOutput': ''})
        else:
            self.answer({'errors': [], 'warnings': []})

    def body(self) -> bytes:
        if 'chunked' not in (self.headers.get('transfer-encoding') or ''):
            return self.rfile.read(int(self.headers.get('content-length') or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header('content-type', 'application/json')
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def hub() -> Iterator[HubServer]:
    """Serve a Hub while a test needs it."""
    with running(HubServer()) as server:
        yield server
