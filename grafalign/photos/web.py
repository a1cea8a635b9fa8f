"""Photos over HTTP: polite to hosts, never talking to private addresses, bounded in time and bytes.

`grafalign.web` has connections, redirects and retries. Here is what photos need besides: turns and pauses for a whole
host, hosts that are gone, and content that is counted while it is unpacked.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import version
from urllib.parse import urlsplit

import urllib3
from pydantic import Field
from urllib3 import exceptions

from grafalign.config import Settings
from grafalign.photos.exif import PhotoError
from grafalign.photos.robots import MAX_ROBOTS_BYTES, ROBOTS_PATH, Robots, opt_out
from grafalign.web.addresses import AddressError, PrivateAddressError, WebError, joined
from grafalign.web.connections import LIMITS, Connections, seconds_left
from grafalign.web.follow import MOST_REDIRECTS, REDIRECTS
from grafalign.web.retries import LONGEST_PHOTO_WAIT_S, Again, answer_of, failure_of

_PIECE = 1 << 16
_MOST_HOSTS = 4096
_STRIKES = 20
"""Tries in a row that a host leaves without an answer until it counts as gone: thousands of its photos must not each
wait for their time-outs."""
_GONE_S = 600.0
"""Seconds until a host that is gone is asked again."""
_REFUSALS = 100
"""Refusals (429, 503 and the like) in a row, without one photo among them, after which a host counts as gone, too: it
may ask for a pause of two minutes each time, and ten thousand photos would take a fortnight, all in vain."""


class RemoteSettings(Settings):
    """The `photos.remote:` part of a recipe: how photos that are not on this machine are fetched."""

    retries: int = Field(default=3, ge=0, le=20)
    """Further tries after a failure that may pass (429, 5xx, time-outs, broken connections)."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds for one try, from connecting to the last byte."""
    connections: int = Field(default=32, ge=1, le=1024)
    """Photos fetched at the same time."""
    per_host: int = Field(default=8, ge=1)
    """Simultaneous requests to one host."""
    per_host_rate: float | None = Field(default=None, gt=0)
    """Requests a second to one host; no limit by default."""
    max_bytes: int = Field(default=50_000_000, ge=1)
    """A remote photo with more bytes, packed or unpacked, is refused."""
    max_pixels: int = Field(default=100_000_000, ge=1)
    """A remote photo that claims more pixels is not decoded."""
    robots: bool = False
    """Leave out what a host's robots.txt or an X-Robots-Tag (noai, noindex ...) forbids; caption sets always do."""
    private_addresses: bool = False
    """Also fetch from loopback, private, link-local and reserved addresses: only for tables whose rows you trust."""
    user_agent: str = Field(default=f'grafalign/{version("grafalign")}', min_length=1, pattern=r'^[\x20-\x7e]+$')
    """What hosts are told; some ask for a contact in it."""


class _Host:
    """How one host is to be treated."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._slots = threading.BoundedSemaphore(settings.per_host)
        self._gap_s = 1 / settings.per_host_rate if settings.per_host_rate else 0.0
        self._lock = threading.Lock()
        self._next = 0.0
        self._strikes = 0
        self._refusals = 0
        self._gone_until = 0.0
        self.users = 0

    def refused(self, did: bool) -> None:
        """Take note whether an answer was one of those that may pass, such as 429."""
        with self._lock:
            self._refusals = self._refusals + 1 if did else 0
            if self._refusals >= _REFUSALS:
                self._gone_until, self._refusals = time.monotonic() + _GONE_S, 0

    def answered(self, did: bool) -> None:
        """Take note whether a try brought an answer, whatever it was."""
        with self._lock:
            self._strikes = 0 if did else self._strikes + 1
            if self._strikes >= _STRIKES:
                self._gone_until, self._strikes = time.monotonic() + _GONE_S, 0

    def check(self) -> None:
        """Say at once that a host is gone.

        Raises:
            PhotoError: it is.
        """
        if time.monotonic() < self._gone_until:
            raise PhotoError('the host does not answer', transient=True)

    def pause(self, seconds: float) -> None:
        """Let nobody ask this host for a while."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until one more request may be made, and count it while it lasts."""
        with self._slots:
            while True:
                self.check()
                with self._lock:
                    wait = self._next - time.monotonic()
                    if wait <= 0:
                        self._next = max(self._next, time.monotonic()) + self._gap_s
                        break
                time.sleep(wait)
            yield


class Web:
    """Fetches over HTTP; used by any number of threads."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        self._connections = Connections(settings.per_host)
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._lock = threading.Lock()
        self._robots = Robots(lambda url: self._patiently(url, {}, MAX_ROBOTS_BYTES)) if settings.robots else None

    def fetch(self, url: str) -> bytes:
        """The content at a URL.

        Raises:
            PhotoError: the reason why there is none.
        """
        return self._patiently(url, {}, self._settings.max_bytes)

    def fetch_part(self, url: str, offset: int, size: int) -> bytes:
        """A part of the content at a URL, shorter where it ends; by a range request (RFC 9110, section 14).

        Raises:
            PhotoError: the reason why there is none; a server may not know ranges.
        """
        return self._patiently(url, {'Range': f'bytes={offset}-{offset + size - 1}'}, size)

    def close(self) -> None:
        """Close all connections."""
        self._connections.close()

    def _patiently(self, url: str, headers: dict[str, str], most: int) -> bytes:
        for left in range(self._settings.retries, -1, -1):
            try:
                return self._follow(url, headers, most)
            except Again as again:
                tried = self._settings.retries - left
                pause = again.wait_s if again.wait_s is not None else min(0.5 * 2**tried, 30) * random.uniform(0.5, 1)
                if not left or pause > LONGEST_PHOTO_WAIT_S:
                    raise PhotoError(str(again), transient=True) from None
                if again.wait_s is None:
                    time.sleep(pause)  # a pause that the host asked for holds for all who ask it: see `_Host.turn`
        raise AssertionError('the loop returns or raises')

    def _follow(self, url: str, headers: dict[str, str], most: int) -> bytes:
        for _ in range(MOST_REDIRECTS + 1):
            if self._robots is not None and urlsplit(url).path != ROBOTS_PATH:
                self._robots.check(url)  # of every host on the way
            answer = self._once(url, headers, most)
            if isinstance(answer, bytes):
                return answer
            try:
                url = joined(url, answer)
            except AddressError:
                raise PhotoError('redirected to no valid address') from None
        raise PhotoError('too many redirects')

    def _once(self, url: str, headers: dict[str, str], most: int) -> bytes | str:
        """One request: the content, or where it is said to be."""
        try:
            parts = urlsplit(url)
            name, port = parts.hostname, parts.port
        except ValueError:
            raise PhotoError('not a valid address') from None
        if parts.scheme not in ('http', 'https'):
            raise PhotoError(f'redirected to {parts.scheme or "nowhere"}:, only http and https are followed')
        if not name:
            raise PhotoError('not a valid address')
        headers = {'User-Agent': self._settings.user_agent, 'Accept-Encoding': 'identity', 'Accept': '*/*', **headers}
        with self._host(f'{parts.scheme}://{name}:{port}') as host, host.turn(), _reasons(host):
            host.check()
            LIMITS.start(self._settings.timeout_s, self._settings.private_addresses)
            response = self._connections.get(url, headers, decode_content=False, timeout=self._settings.timeout_s)
            try:
                return self._answer(response, host, headers, most)
            except BaseException:
                response.close()
                raise
            finally:
                response.release_conn()

    def _answer(
        self, response: urllib3.BaseHTTPResponse, host: _Host, headers: dict[str, str], most: int
    ) -> bytes | str:
        status, part = response.status, 'Range' in headers
        if status in REDIRECTS and response.headers.get('Location'):
            _drain(response)
            return response.headers['Location']
        if part and status == 416:  # beyond the end
            _drain(response)
            return b''
        again = answer_of(response)
        host.refused(again is not None)
        if again is not None:
            if again.wait_s is not None and again.wait_s <= LONGEST_PHOTO_WAIT_S:
                host.pause(again.wait_s)
            _drain(response)
            raise again
        if part and status == 200:
            raise PhotoError('the server does not send parts of a file (no range requests)')
        if status != (206 if part else 200):
            _drain(response)
            raise PhotoError(f'HTTP {status}', absent=400 <= status < 500)
        directive = opt_out(response.headers.get('X-Robots-Tag')) if self._robots is not None else None
        if directive is not None:
            response.close()
            raise PhotoError(f'the host does not want it taken (X-Robots-Tag: {directive})')
        wanted = headers.get('Range', '').partition('-')[0].replace('=', ' ')  # `bytes 100` of `bytes=100-199`
        if part and not response.headers.get('Content-Range', '').startswith(f'{wanted}-'):
            raise PhotoError('the server sends another part of the file than asked for')
        kind = response.headers.get('Content-Type', '').partition(';')[0].strip().lower()
        if kind in ('text/html', 'application/xhtml+xml') and not part:
            raise PhotoError('a web page, not an image', absent=True)
        return _body(response, most)

    @contextlib.contextmanager
    def _host(self, name: str) -> Iterator[_Host]:
        with self._lock:
            host = self._hosts.setdefault(name, _Host(self._settings))
            self._hosts.move_to_end(name)
            host.users += 1
            if len(self._hosts) > _MOST_HOSTS:
                for idle in [n for n, h in self._hosts.items() if not h.users][: _MOST_HOSTS // 4]:
                    del self._hosts[idle]
        try:
            yield host
        finally:
            with self._lock:
                host.users -= 1


@contextlib.contextmanager
def _reasons(host: _Host) -> Iterator[None]:
    """What urllib3 and the system raise, as reasons; and note whether the host answered."""
    try:
        yield
        host.answered(True)
    except (PhotoError, Again):
        host.answered(True)
        raise
    except (WebError, exceptions.HTTPError, OSError, UnicodeError) as error:
        failure = failure_of(error)
        if not isinstance(failure, AddressError | PrivateAddressError):
            host.answered(False)
        if isinstance(failure, PrivateAddressError):
            raise PhotoError('private address') from None
        raise (failure if isinstance(failure, Again) else PhotoError(str(failure))) from None


def _pieces(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """What has come, as it comes."""
    while piece := response.read1(_PIECE):
        seconds_left()
        yield piece


def _drain(response: urllib3.BaseHTTPResponse) -> None:
    """Read what little follows an error or a redirect, so that the connection can be used again."""
    count = 0
    for piece in _pieces(response):
        count += len(piece)
        if count > _PIECE:
            response.close()
            return


def _body(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    """The body, unpacked; both what comes over the wire and what it unpacks to are counted."""
    too_many = f'more than {most / 1e6:g} MB'
    length = response.headers.get('Content-Length', '')
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > most):
        raise PhotoError(too_many)
    packing = response.headers.get('Content-Encoding', 'identity').strip().lower()
    if packing not in ('identity', '', 'gzip', 'x-gzip', 'deflate'):
        raise PhotoError(f'packed as {packing[:20]}, which was not asked for')
    unpack = None if packing in ('identity', '') else zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib, by its head
    whole, wire = bytearray(), 0
    for piece in _pieces(response):
        wire += len(piece)
        try:
            whole += piece if unpack is None else unpack.decompress(piece, most + 1 - len(whole))
        except zlib.error:
            raise PhotoError('damaged packing') from None
        if max(len(whole), wire) > most:
            raise PhotoError(too_many)
    if unpack is not None and not unpack.eof:
        raise Again('connection broken')
    return bytes(whole)
