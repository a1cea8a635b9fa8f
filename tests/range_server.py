"""A local HTTP/1.1 server of byte ranges in a process of its own, as an object store would answer.

It counts what is asked of it (requests, HEADs, ranges, bytes, connections, by file), waits a set time before every
answer, and misbehaves on request. One thread a connection: parsing is a few string operations, the body goes out by
`sendfile`, and both waiting and sending release the interpreter lock, so the server keeps up with tens of connections.

    with RangeServer(folder) as server:
        server.set(latency_ms=50, faults={'fail_every': 10})
        ... read server.url('a.tif') ...
        server.counts()['requests']

Command line: `python tests/range_server.py FOLDER`; the first line of its output is the port. It ends with its stdin.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

CONTROL = '/_control'
_REASONS = {
    200: 'OK',
    206: 'Partial Content',
    400: 'Bad Request',
    403: 'Forbidden',
    404: 'Not Found',
    405: 'Method Not Allowed',
    412: 'Precondition Failed',
    416: 'Range Not Satisfiable',
    503: 'Service Unavailable',
}
_ONE_RANGE = re.compile(r'bytes=(\d*)-(\d*)$')


@dataclass
class Faults:
    """What goes wrong on purpose; all off at first.

    `every` counts the requests that `path` selects, from the moment the faults are set.
    """

    fail_every: int = 0
    """Every Nth request is answered with `fail_status`."""
    fail_status: int = 503
    retry_after: str | None = '0'
    """`Retry-After` of that answer; None for none."""
    token: str | None = None
    """Requests whose query does not say `sig=<token>` get 403."""
    cut_every: int = 0
    """Every Nth body ends half way, with the connection."""
    wrong_every: int = 0
    """Every Nth body has the right length and wrong bytes (each inverted)."""
    stall_every: int = 0
    """Every Nth body stops half way for `stall_s` seconds."""
    stall_s: float = 0.0
    ignore_ranges: bool = False
    """Answer 200 and the whole file, as a server without ranges."""
    path: str = ''
    """Only requests for paths that contain this."""
    limit: int | None = None
    """At most this many of the `every` faults."""


@dataclass
class FileCounts:
    """What was asked of one file."""

    requests: int = 0
    heads: int = 0
    bytes: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """First and last byte of every range sent, in the order of the requests."""


@dataclass
class Counts:
    """What was asked since the last reset; control requests do not count."""

    requests: int = 0
    heads: int = 0
    range_requests: int = 0
    bytes: int = 0
    """Body bytes that really went out."""
    connections: int = 0
    """Connections opened for at least one counted request."""
    peak_requests: int = 0
    """Most requests in work at one time."""
    faults: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    files: dict[str, FileCounts] = field(default_factory=dict)


class _State:
    """Shared by all connections, behind one lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.lock = threading.Lock()
        self.latency_s = 0.0
        self.faults = Faults()
        self.seen = self.met = 0  # requests that the faults select, and how many of them met one
        self.counts = Counts()
        self.epoch = 0
        self.active = 0
        self.cpu = time.process_time()

    def control(self, body: bytes) -> bytes:
        """Apply the settings in a control request and return the counts."""
        wanted: dict[str, Any] = json.loads(body) if body else {}
        with self.lock:
            if 'latency_ms' in wanted:
                self.latency_s = float(wanted['latency_ms']) / 1000
            if 'faults' in wanted:
                self.faults, self.seen, self.met = replace(Faults(), **wanted['faults']), 0, 0
            found = {**asdict(self.counts), 'cpu_s': time.process_time() - self.cpu}
            if wanted.get('reset'):
                self.counts, self.cpu = Counts(), time.process_time()
                self.epoch += 1
        return json.dumps(found).encode()


class _Connection:
    """One client connection: requests are answered in order until it closes."""

    def __init__(self, client: socket.socket, state: _State) -> None:
        self.client, self.state = client, state
        self.buffer = b''
        self.epoch = -1
        self.files: dict[Path, int] = {}

    def run(self) -> None:
        """Serve until the client goes."""
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while self._one():
                pass
        except OSError:
            pass  # the client hung up in the middle: that is its right
        finally:
            for fd in self.files.values():
                os.close(fd)
            self.client.close()

    def _one(self) -> bool:
        """Read and answer one request; False where the connection ends."""
        while b'\r\n\r\n' not in self.buffer:
            more = self.client.recv(65536)
            if not more:
                return False
            self.buffer += more
        head, _, self.buffer = self.buffer.partition(b'\r\n\r\n')
        first, *lines = head.decode('latin-1').split('\r\n')
        method, target, version = first.split(' ', 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(':') for line in lines)}
        length = int(headers.get('content-length', 0))
        while len(self.buffer) < length:
            self.buffer += self.client.recv(65536)
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        keep = headers.get('connection', '').lower() != 'close' and version == 'HTTP/1.1'
        if target.startswith(CONTROL):
            self._head(200, self.state.control(body))
            return keep
        with self.state.lock:
            self.state.active += 1
            self.state.counts.peak_requests = max(self.state.counts.peak_requests, self.state.active)
        try:
            return self._serve(method, target, headers) and keep
        finally:
            with self.state.lock:
                self.state.active -= 1

    def _serve(self, method: str, target: str, headers: dict[str, str]) -> bool:
        state = self.state
        url = urlsplit(target)
        name = unquote(url.path).lstrip('/')
        with state.lock:
            faults = state.faults
            latency_s = state.latency_s
            kind = None
            if faults.path in name:
                state.seen += 1
                kind = _fault(faults, state.seen, state.met)
                state.met += kind is not None
                state.counts.faults += kind is not None
            state.counts.requests += 1
            state.counts.heads += method == 'HEAD'
            if self.epoch != state.epoch:
                self.epoch = state.epoch
                state.counts.connections += 1
        if latency_s:
            time.sleep(latency_s)
        if kind == 'fail':
            wait = {} if faults.retry_after is None else {'Retry-After': faults.retry_after}
            return self._refuse(name, method, faults.fail_status, wait)
        if faults.token is not None and faults.path in name and parse_qs(url.query).get('sig') != [faults.token]:
            return self._refuse(name, method, 403)
        if method not in ('GET', 'HEAD'):
            return self._refuse(name, method, 405, {'Allow': 'GET, HEAD'})
        path = (state.folder / name).resolve()
        if not path.is_relative_to(state.folder) or not path.is_file():
            return self._refuse(name, method, 404)
        metadata = path.stat()
        about = {
            'Accept-Ranges': 'none' if faults.ignore_ranges else 'bytes',
            'Content-Type': 'application/octet-stream',
            'ETag': f'"{metadata.st_size:x}-{metadata.st_mtime_ns:x}"',
            'Last-Modified': email.utils.formatdate(metadata.st_mtime, usegmt=True),
        }
        if headers.get('if-match', '*') not in ('*', about['ETag']):
            return self._refuse(name, method, 412)
        wanted = None if faults.ignore_ranges else headers.get('range')
        if headers.get('if-range') not in (None, about['ETag'], about['Last-Modified']):
            wanted = None
        span = _span(wanted, metadata.st_size)
        if span is None:
            return self._refuse(name, method, 416, {'Content-Range': f'bytes */{metadata.st_size}'})
        start, stop = span
        # several ranges in one request may be answered with the whole file (RFC 9110, 14.2), and object stores do so
        partial = wanted is not None and _ONE_RANGE.match(wanted) is not None
        if partial:
            about['Content-Range'] = f'bytes {start}-{stop - 1}/{metadata.st_size}'
        status = 206 if partial else 200
        about['Content-Length'] = str(stop - start)
        sent, whole = 0, True
        # counted before the body goes out, so that a client that has its bytes finds them counted
        self._count(name, method, status, 0 if method == 'HEAD' else stop - start, span if partial else None)
        self._send_head(status, about, more=method == 'GET')
        if method == 'GET':
            sent, whole = self._body(path, start, stop, kind, faults.stall_s)
            if sent != stop - start:
                self._uncount(name, stop - start - sent)
        return whole

    def _body(self, path: Path, start: int, stop: int, kind: str | None, stall_s: float) -> tuple[int, bool]:
        """Send bytes [start, stop): how many went out, and whether the connection lives on."""
        if path not in self.files:
            self.files[path] = os.open(path, os.O_RDONLY)
        fd = self.files[path]
        if os.fstat(fd).st_ino != path.stat().st_ino:  # the file was replaced
            os.close(fd)
            fd = self.files[path] = os.open(path, os.O_RDONLY)
        if kind == 'wrong':
            self.client.sendall(bytes(255 - b for b in os.pread(fd, stop - start, start)))
            return stop - start, True
        middle = start + (stop - start) // 2
        at = self._copy(fd, start, middle if kind in ('cut', 'stall') else stop)
        if kind == 'cut':
            return at - start, False
        if kind == 'stall':
            time.sleep(stall_s)
            at = self._copy(fd, at, stop)
        return at - start, at == stop

    def _copy(self, fd: int, start: int, stop: int) -> int:
        while start < stop:
            sent = os.sendfile(self.client.fileno(), fd, start, stop - start)
            if not sent:
                break
            start += sent
        return start

    def _refuse(self, name: str, method: str, status: int, extra: dict[str, str] | None = None) -> bool:
        self._count(name, method, status, 0, None)
        self._head(status, b'', extra)
        return True

    def _count(self, name: str, method: str, status: int, nbytes: int, span: tuple[int, int] | None) -> None:
        with self.state.lock:
            counts = self.state.counts
            here = counts.files.setdefault(name, FileCounts())
            here.requests += 1
            here.heads += method == 'HEAD'
            here.bytes += nbytes
            counts.bytes += nbytes
            counts.statuses[str(status)] = counts.statuses.get(str(status), 0) + 1
            if span is not None and method == 'GET':
                counts.range_requests += 1
                here.ranges.append((span[0], span[1] - 1))

    def _uncount(self, name: str, nbytes: int) -> None:
        with self.state.lock:
            self.state.counts.bytes -= nbytes
            if name in self.state.counts.files:
                self.state.counts.files[name].bytes -= nbytes

    def _head(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
        self._send_head(status, {**(extra or {}), 'Content-Length': str(len(body))}, body)

    def _send_head(self, status: int, headers: dict[str, str], body: bytes = b'', more: bool = False) -> None:
        lines = ''.join(f'{k}: {v}\r\n' for k, v in headers.items())
        head = f'HTTP/1.1 {status} {_REASONS.get(status, "Error")}\r\n{lines}\r\n'.encode('latin-1')
        _send_all(self.client, head + body, getattr(socket, 'MSG_MORE', 0) if more else 0)


def _send_all(client: socket.socket, data: bytes, flags: int) -> None:
    while data:
        data = data[client.send(data, flags) :]


def _fault(faults: Faults, number: int, done: int) -> str | None:
    """Which fault request `number` meets."""
    if faults.limit is not None and done >= faults.limit:
        return None
    for kind in ('fail', 'cut', 'wrong', 'stall'):
        every = getattr(faults, f'{kind}_every')
        if every and number % every == 0:
            return kind
    return None


def _span(wanted: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a `Range`; the whole file for none; None for one that is not there."""
    found = _ONE_RANGE.match(wanted) if wanted else None
    if found is None or found[1] == found[2] == '':
        return 0, size
    if found[1] == '':
        start, stop = max(0, size - int(found[2])), size
    else:
        start, stop = int(found[1]), size if found[2] == '' else min(size, int(found[2]) + 1)
    return (start, stop) if start < stop else None


def serve(folder: Path) -> None:
    """Serve a folder on a free port until stdin closes; prints the port first."""
    state = _State(folder)
    listener = socket.create_server(('127.0.0.1', 0), backlog=512)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_Connection(client, state).run, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.buffer.read()  # ends with the process that started this one
    os._exit(0)


class RangeServer:
    """The server in its own process, from `with` to the end of it.

    Args:
        folder: what it serves.
        latency_ms: wait before every answer.
    """

    def __init__(self, folder: Path, latency_ms: float = 0) -> None:
        self._folder, self._latency_ms = folder, latency_ms
        self.port = 0

    def __enter__(self) -> RangeServer:
        command = [sys.executable, str(Path(__file__).resolve()), str(self._folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError('the range server did not start')
        self.port = int(line)
        self.set(latency_ms=self._latency_ms)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def root(self) -> str:
        """URL of the folder, without a slash at its end."""
        return f'http://127.0.0.1:{self.port}'

    def url(self, name: str, token: str | None = None) -> str:
        """URL of a file in the folder."""
        return f'{self.root}/{quote(name)}' + (f'?sig={token}' if token is not None else '')

    def set(self, latency_ms: float | None = None, faults: dict[str, Any] | None = None) -> None:
        """Change the latency, or the faults (keys of `Faults`; {} for none), from the next request on."""
        given = {'latency_ms': latency_ms, 'faults': faults}
        self._control({k: v for k, v in given.items() if v is not None})

    def reset(self) -> dict[str, Any]:
        """Set all counts to zero; returns what they were."""
        return self._control({'reset': True})

    def counts(self) -> dict[str, Any]:
        """The fields of `Counts` since the last reset, and `cpu_s` that the server has used."""
        return self._control({})

    def _control(self, wanted: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        try:
            connection.request('POST', CONTROL, json.dumps(wanted), {'Connection': 'close'})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


if __name__ == '__main__':
    serve(Path(sys.argv[1]))
