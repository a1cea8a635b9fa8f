"""Byte ranges of remote files: one request a range, over connections that stay open, with every request counted."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import fsspec
import urllib3

from grafalign.guarded import LIMITS, PrivateAddressError, guarded_pools

_STATUS_WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)
USER_AGENT = 'grafalign'
_REDIRECTS = urllib3.Retry(total=None, connect=0, read=0, other=0, status=0, redirect=5)
"""Other failures are counted and waited for here."""


class RangeError(OSError):
    """A range could not be had; the text says why."""


@dataclass
class Traffic:
    """What went over the wire."""

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, requests: int = 0, nbytes: int = 0, retries: int = 0) -> None:
        """Count; safe from any thread."""
        with self._lock:
            self.requests += requests
            self.bytes += nbytes
            self.retries += retries


class Signs(Protocol):
    """Makes readable URLs of asset hrefs (`grafalign.scenes.signing.Signer`)."""

    def sign(self, href: str) -> str:
        """A URL that can be read now."""

    def refresh(self, href: str, failed: str) -> str:
        """A URL in place of one that the server refused; the same one where that cannot help."""


class RangeReader:
    """Reads byte ranges of http(s) and fsspec URLs; one reader serves all threads.

    Args:
        connections: how many connections to one host stay open.
        signer: signs every href right before its request; None where none needs it.
        private: also read from loopback, private and link-local addresses.
        timeout_s: seconds for one try, from connecting to the last byte.
        retries: tries after the first one.
    """

    def __init__(
        self,
        connections: int = 16,
        signer: Signs | None = None,
        private: bool = True,
        timeout_s: float = 120,
        retries: int = 5,
    ) -> None:
        self.traffic = Traffic()
        self._signer, self._tries = signer, retries + 1
        self._pool = guarded_pools(connections)
        self._private, self._timeout_s = private, timeout_s
        self._sizes: dict[str, int] = {}

    def read(self, href: str, start: int, length: int) -> bytes:
        """Bytes `start` to `start + length` of a file; fewer where it ends before.

        Raises:
            RangeError: there is no such file, or the server did not answer in spite of retries.
        """
        if urlsplit(href).scheme not in ('http', 'https'):
            return self._read_fsspec(href, start, length)
        wait_s, problem = 0.0, ''
        for attempt in range(self._tries):
            if attempt:
                self.traffic.add(retries=1)
                time.sleep(wait_s)
            wait_s = min(0.25 * 2**attempt, 8)
            url = self._signer.sign(href) if self._signer else href
            LIMITS.deadline, LIMITS.private = time.monotonic() + self._timeout_s, self._private
            headers = {'User-Agent': USER_AGENT, 'Range': f'bytes={start}-{start + length - 1}'}
            try:
                response = self._pool.request('GET', url, headers=headers, preload_content=False, retries=_REDIRECTS)
            except PrivateAddressError:
                raise RangeError('its host has a private address, which an item of an API must not name') from None
            except (urllib3.exceptions.HTTPError, TimeoutError) as error:
                self.traffic.add(requests=1)
                problem = _plain(error)
                continue
            try:
                self.traffic.add(requests=1)
                if response.status in (200, 206):
                    content = self._content(href, response, start, length)
                    self.traffic.add(nbytes=len(content))
                    return content
                if response.status == 416:  # the range begins behind the end
                    return b''
                problem = f'HTTP {response.status}'
                if response.status in _STATUS_WORTH_RETRYING:
                    wait_s = max(wait_s, _retry_after(response.headers.get('Retry-After')))
                elif response.status in (401, 403) and self._signer and self._signer.refresh(href, url) != url:
                    wait_s = 0.0
                else:
                    raise RangeError(problem)
            except (urllib3.exceptions.HTTPError, TimeoutError) as error:
                problem = _plain(error)
            finally:
                if not response.closed:  # not read to its end: the connection cannot be used again
                    response.close()
        raise RangeError(f'{problem}, {self._tries} times')

    def size(self, href: str) -> int:
        """Length of a file in bytes; known after the first range of it was read over http."""
        if href not in self._sizes:
            if urlsplit(href).scheme in ('http', 'https'):
                self.read(href, 0, 1)
            else:
                fs, path = fsspec.core.url_to_fs(href)
                self.traffic.add(requests=1)
                self._sizes[href] = int(fs.size(path))
        return self._sizes[href]

    def _content(self, href: str, response: urllib3.BaseHTTPResponse, start: int, length: int) -> bytes:
        whole = response.headers.get('Content-Range', '').rpartition('/')[2]
        if response.status == 206:
            if whole.isdigit():
                self._sizes[href] = int(whole)
            content = response.read(length, decode_content=False)
            wanted = min(length, self._sizes.get(href, start + length) - start)
            if len(content) < wanted:
                raise urllib3.exceptions.ProtocolError(f'{len(content)} of {wanted} bytes arrived')
            return content
        if start or int(response.headers.get('Content-Length') or length + 1) > length:
            raise RangeError('the server sends whole files, not ranges')
        content = response.read(length, decode_content=False)
        self._sizes[href] = len(content)
        return content

    def _read_fsspec(self, href: str, start: int, length: int) -> bytes:
        try:
            fs, path = fsspec.core.url_to_fs(href)
            content: bytes = fs.cat_file(path, start=start, end=start + length)
        except (OSError, ValueError, ImportError) as error:
            raise RangeError(str(error) or type(error).__name__) from None
        self.traffic.add(1, len(content))
        return content


def _retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header, at most a minute; 0 without one."""
    if not value:
        return 0.0
    try:
        return float(min(60, max(0, urllib3.Retry().parse_retry_after(value))))
    except urllib3.exceptions.InvalidHeader:
        return 0.0


def _plain(error: Exception) -> str:
    """The cause of a failed request in a few words."""
    reason: Any = getattr(error, 'reason', None) or error
    if isinstance(reason, urllib3.exceptions.TimeoutError | TimeoutError):
        return 'timed out'
    return str(reason).rpartition(': ')[2] or type(reason).__name__
