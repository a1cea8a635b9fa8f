"""Byte ranges of remote files: one request a range, over connections that stay open, with every request counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import fsspec
import urllib3

from grafalign.errors import GrafalignError
from grafalign.web.addresses import AddressError, PrivateAddressError
from grafalign.web.connections import LIMITS, Connections
from grafalign.web.follow import follow
from grafalign.web.retries import LONGEST_RANGE_WAIT_S, Again, Patience, answer_of, failure_of


class RangeError(OSError):
    """A range could not be had; the text says why.

    Args:
        text: why.
        missing: whether the server says that there is no such file, or none that may be read.
    """

    def __init__(self, text: str, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing


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
    """Makes readable URLs of asset hrefs (`grafalign.scenes.signing.Signer` does)."""

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
        self._signer, self._retries = signer, retries
        self._connections = Connections(connections)
        self._private, self._timeout_s = private, timeout_s
        self._sizes: dict[str, int] = {}

    def read(self, href: str, start: int, length: int) -> bytes:
        """Bytes `start` to `start + length` of a file; fewer where it ends before.

        Raises:
            RangeError: there is no such file, or the server did not answer in spite of retries.
        """
        if not _is_web(href):
            return self._read_fsspec(href, start, length)
        return next(self._pieces(href, [(start, length)], short=True))

    def stream(self, href: str, pieces: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Stretches of a file (start, length), in the order of their bytes, with one request for all of them.

        Each is handed on as it arrives. If the connection breaks, what is left is asked for again.

        Raises:
            RangeError: as `read`, or the file ends before.
        """
        if _is_web(href):
            yield from self._pieces(href, pieces, short=False)
            return
        first, last = pieces[0], pieces[-1]
        content = self._read_fsspec(href, first[0], last[0] + last[1] - first[0])
        for start, length in pieces:
            piece = content[start - first[0] : start - first[0] + length]
            if len(piece) < length:
                raise RangeError('the file is cut off')
            yield piece

    def size(self, href: str) -> int:
        """Length of a file in bytes; known after the first range of it was read over http."""
        if href not in self._sizes:
            if _is_web(href):
                self.read(href, 0, 1)
            else:
                fs, path = fsspec.core.url_to_fs(href)
                self.traffic.add(requests=1)
                self._sizes[href] = int(fs.size(path))
        return self._sizes[href]

    def _pieces(self, href: str, pieces: Sequence[tuple[int, int]], short: bool) -> Iterator[bytes]:
        """Pieces of a file over http; `short` allows the last one to end with the file."""
        end = pieces[-1][0] + pieces[-1][1]
        done, patience = 0, Patience(self._retries, LONGEST_RANGE_WAIT_S)
        while done < len(pieces):
            response = None
            try:
                at = pieces[done][0]
                response = self._respond(href, at, end - at)
                for start, length in pieces[done:]:
                    piece = self._take(href, response, start - at, length, short)
                    at = start + length
                    self.traffic.add(nbytes=len(piece))
                    done += 1
                    patience.failures = 0
                    yield piece
            except Again as again:
                if not patience.wait(again):
                    raise RangeError(f'{again}, {patience.failures} times') from None
                self.traffic.add(retries=1)
            finally:
                if response is not None and not response.closed:  # not read to its end: it cannot be used again
                    response.close()

    def _respond(self, href: str, start: int, length: int) -> urllib3.BaseHTTPResponse:
        """Make one request; return a response whose body begins at `start`."""
        try:
            url = self._signer.sign(href) if self._signer else href
        except GrafalignError as error:  # one file that cannot be signed is one file that cannot be read
            raise RangeError(str(error)) from None
        try:
            response = follow(
                url,
                private=self._private,
                timeout_s=self._timeout_s,
                headers={'Range': f'bytes={start}-{start + length - 1}'},
                connections=self._connections,
                count=lambda: self.traffic.add(requests=1),
            )
        except PrivateAddressError:
            raise RangeError('its host has a private address, which an item of an API must not name') from None
        except AddressError as error:
            raise RangeError(f'it leads to no address that is read ({error})') from None
        except (urllib3.exceptions.HTTPError, TimeoutError) as error:
            raise _passing(error) from None
        span, _, whole = response.headers.get('Content-Range', '').rpartition('/')
        if whole.isascii() and whole.isdigit() and len(whole) < 19:
            self._sizes[href] = int(whole)
        if response.status == 206 and span and not span.startswith(f'bytes {start}-'):
            response.close()
            raise RangeError(f'the server sent {span}, not what was asked for')
        if response.status in (206, 416):
            return response
        if response.status == 200:
            size = response.headers.get('Content-Length', '')
            if start == 0 and size.isdigit() and int(size) <= length:
                self._sizes[href] = int(size)
                return response
            response.close()
            raise RangeError('the server sends whole files, not ranges')
        response.close()
        again = answer_of(response)
        if again is not None:
            raise again
        if response.status in (401, 403) and self._signer:
            try:
                fresh = self._signer.refresh(href, url)
            except GrafalignError as error:
                raise RangeError(str(error)) from None
            if fresh != url:
                raise Again(f'HTTP {response.status}', 0)
        raise RangeError(f'HTTP {response.status}', missing=400 <= response.status < 500)

    def _take(self, href: str, response: urllib3.BaseHTTPResponse, skip: int, length: int, short: bool) -> bytes:
        """The next bytes of a body, after some that nobody wants."""
        if response.status == 416:  # the range begins behind the end
            if short:
                return b''
            raise RangeError('the file is cut off')
        self._start_clock()
        try:
            if skip:
                response.read(skip, decode_content=False)
            piece = response.read(length, decode_content=False)
        except (urllib3.exceptions.HTTPError, TimeoutError) as error:
            raise _passing(error) from None
        if len(piece) < length:
            said = response.headers.get('Content-Length', '')
            if short and (not said.isdigit() or int(said) == len(piece)):
                return piece
            if int(self._sizes.get(href, 0)) and not short and said.isdigit() and int(said) < skip + length:
                raise RangeError('the file is cut off')
            raise Again(f'{len(piece)} of {length} bytes arrived')
        return piece

    def _start_clock(self) -> None:
        LIMITS.start(self._timeout_s, self._private)

    def _read_fsspec(self, href: str, start: int, length: int) -> bytes:
        try:
            fs, path = fsspec.core.url_to_fs(href)
            content: bytes = fs.cat_file(path, start=start, end=start + length)
        except FileNotFoundError as error:
            raise RangeError(str(error) or 'there is no such file', missing=True) from None
        except Exception as error:  # the packages behind fsspec raise types of their own (botocore's are plain ones)
            raise RangeError(str(error) or type(error).__name__) from None
        self.traffic.add(1, len(content))
        return content


def _is_web(href: str) -> bool:
    return href.lower().startswith(('http://', 'https://'))


def _passing(error: Exception) -> Exception:
    """A failed request as one worth another try, or as the end of it."""
    failure = failure_of(error)
    return failure if isinstance(failure, Again) else RangeError(str(failure))
